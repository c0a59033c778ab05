-- Notes of members of one node in one topic that their leaving has been told, or will be by who removes what is left
-- under a former name of the node: whoever removes them next tells nobody again.
-- KEYS  the hash of those members, connection id -> member as it stands among the node's members
-- ARGV  time to live in ms; then connection id and member, any number of times
-- Gives 1; 0 where a key of another type is in the way, which is none of ours.
-- A note counts for this very membership alone, as each has a time of its own: one that was left behind is no harm.
-- PEXPIRE comes first: a server that is out of memory refuses a script's HSET unless the script has written before.
redis.call('PEXPIRE', KEYS[1], ARGV[1])
local noted = redis.pcall('HSET', KEYS[1], unpack(ARGV, 2))
if type(noted) == 'table' then
  return string.find(noted.err, 'WRONGTYPE', 1, true) and 0 or noted
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
