-- Removes all members of one node from one topic, which nobody is to be told of.
-- KEYS  the topic's hash node -> count of members; the node's hash connection id -> member
-- ARGV  the node
redis.call('UNLINK', KEYS[2])
return redis.call('HDEL', KEYS[1], ARGV[1])
