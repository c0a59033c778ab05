-- Removes all members of one node from one topic. Of several callers only one gets them.
-- KEYS  the topic's hash node -> count of members; the node's hash connection id -> member
-- ARGV  the node
-- Gives the members: connection id, member, connection id, member ...
local members = redis.call('HGETALL', KEYS[2])
redis.call('UNLINK', KEYS[2])
redis.call('HDEL', KEYS[1], ARGV[1])
return members
