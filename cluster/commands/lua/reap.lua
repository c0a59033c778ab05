-- Removes all members of one node from one topic. Of several callers only one gets them.
-- KEYS  the topic's hash node -> count of members; the node's hash connection id -> member
-- ARGV  the node
-- Gives the members: connection id, member, connection id, member ...
-- A key of another type is none of ours, and stays: it must not keep the rest of a dead node from being removed.
local members = redis.pcall('HGETALL', KEYS[2])
if not members.err then
  redis.call('UNLINK', KEYS[2])
elseif not string.find(members.err, 'WRONGTYPE', 1, true) then
  return members
end
redis.pcall('HDEL', KEYS[1], ARGV[1])
return members.err and {} or members
