-- Removes all members of one node from one topic, which nobody is to be told of.
-- KEYS  the topic's hash node -> count of members; the node's hash connection id -> member
-- ARGV  the node
-- A key of another type is none of ours, and stays.
if type(redis.pcall('HLEN', KEYS[2])) == 'number' then
  redis.call('UNLINK', KEYS[2])
end
local counted = redis.pcall('HDEL', KEYS[1], ARGV[1])
if type(counted) == 'table' and not string.find(counted.err, 'WRONGTYPE', 1, true) then
  return counted
end
return counted == 1 and 1 or 0
