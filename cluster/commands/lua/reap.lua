-- Begins to remove the members of a dead node from one topic: they do not count any more. They are kept until they were
-- told and deleted, so that whoever comes after a reaper that died gets them again.
-- KEYS  the topic's hash node -> count of members; the node's hash connection id -> member
-- ARGV  the node; time to live of what is kept, in ms
-- Gives the members: connection id, member, connection id, member ...
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return redis.call('HGETALL', KEYS[2])
