-- Removes members of one node from one topic.
-- KEYS  the topic's hash node -> count of members; the node's hash connection id -> member
-- ARGV  the node; then connection ids
-- Gives how many members the node still has there.
-- HDEL comes first: a server that is out of memory refuses a script's HSET unless the script has written before.
local removed = redis.pcall('HDEL', KEYS[2], unpack(ARGV, 2))
if type(removed) == 'table' then
  -- A key of another type is none of ours and has no members: one of them must not keep others from leaving.
  return string.find(removed.err, 'WRONGTYPE', 1, true) and 0 or removed
end
local own = redis.call('HLEN', KEYS[2])
local counted
if own == 0 then
  counted = redis.pcall('HDEL', KEYS[1], ARGV[1])
else
  counted = redis.pcall('HSET', KEYS[1], ARGV[1], own)
end
if type(counted) == 'table' and not string.find(counted.err, 'WRONGTYPE', 1, true) then
  return counted
end
return own
