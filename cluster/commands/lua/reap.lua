-- Begins to remove the members of a dead node from one topic: they do not count any more. They are kept until they were
-- told and deleted, so that whoever comes after a reaper that died gets them again.
-- KEYS  the topic's hash node -> count of members; the node's hash connection id -> member
-- ARGV  the node; time to live of what is kept, in ms
-- Gives the members: connection id, member, connection id, member ...
-- A key of another type is none of ours, and stays: it must not keep the rest of a dead node from being removed.
redis.pcall('HDEL', KEYS[1], ARGV[1])
local members = redis.pcall('HGETALL', KEYS[2])
if members.err then
  return string.find(members.err, 'WRONGTYPE', 1, true) and {} or members
end
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return members
