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
redis.call('HDEL', KEYS[2], unpack(ARGV, 3))
local own = redis.call('HLEN', KEYS[2])
if own == 0 then
  redis.call('HDEL', KEYS[1], ARGV[1])
elseif redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then -- else it counts no more: a reaper has begun
  redis.call('HSET', KEYS[1], ARGV[1], own)
end
return own
