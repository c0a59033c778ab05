-- Removes members of one node from one topic.
-- KEYS  the topic's hash node -> count of members; the node's hash connection id -> member
-- ARGV  the node; then connection ids
-- Gives how many members the node still has there.
-- HDEL comes first: a server that is out of memory refuses a script's HSET unless the script has written before.
-- A hash without fields is gone, and must not be asked again: while a slot migrates, what is missing cannot be reached.
local own = redis.call('HLEN', KEYS[2])
own = own - redis.call('HDEL', KEYS[2], unpack(ARGV, 2))
if own == 0 then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[1], own)
end
return own
