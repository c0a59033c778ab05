-- Removes members of one node from one topic.
-- KEYS  the topic's hash node -> count of members; the node's hash connection id -> member
-- ARGV  the node; until when it may be carried out, in ms of server time; then connection ids
-- Gives how many members the node still has there; where it came too late, as in enter.lua.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if now > tonumber(ARGV[2]) then
  return -now
end
-- HDEL comes first: a server that is out of memory refuses a script's HSET unless the script has written before.
-- A hash without fields is gone, and must not be asked again: while a slot migrates, what is missing cannot be reached.
local own = redis.pcall('HLEN', KEYS[2])
if type(own) == 'table' then
  -- A key of another type is none of ours and has no members: one of them must not keep others from leaving.
  return string.find(own.err, 'WRONGTYPE', 1, true) and 0 or own
end
own = own - redis.call('HDEL', KEYS[2], unpack(ARGV, 3))
local counted
if own == 0 then
  counted = redis.pcall('HDEL', KEYS[1], ARGV[1])
else
  counted = redis.pcall('HEXISTS', KEYS[1], ARGV[1])
  if counted == 1 then -- else it counts no more: a reaper has begun
    counted = redis.pcall('HSET', KEYS[1], ARGV[1], own)
  end
end
if type(counted) == 'table' and not string.find(counted.err, 'WRONGTYPE', 1, true) then
  return counted
end
return own
