-- Renews the lease of one node and looks for nodes whose lease has ended.
-- KEYS  the sorted set of leases, node -> end in ms of server time ("!node": claimed by a reaper until then);
--       the set of the node's topics; the sorted set of nodes that were claimed (see claim.lua)
-- ARGV  the node; length of a lease in ms; time to live of the keys in ms; "1" to begin a lease, "0" to renew one
-- Gives {1, ms until the next lease of any node ends, the server's replication id, its time in ms, nodes whose lease has
-- ended ...}. Where the lease to be renewed is not there it changes nothing, and gives {0, 1} where the node was claimed,
-- {0, 0} where the server lost it.
local node, ttl = ARGV[1], tonumber(ARGV[3])
if ARGV[4] ~= '1' and not redis.call('ZSCORE', KEYS[1], node) then
  local claimed = redis.call('ZSCORE', KEYS[1], '!' .. node) or redis.call('ZSCORE', KEYS[3], node)
  return {0, claimed and 1 or 0}
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- PEXPIRE comes first: a server that is out of memory refuses a script's ZADD unless the script has written before,
-- and a full server is no reason to let the nodes' leases end.
redis.call('PEXPIRE', KEYS[2], ttl)
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), node)
redis.call('PEXPIRE', KEYS[1], ttl)
local following = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
-- The id changes when a replica takes over; a user who may not ask for it goes without.
local info = redis.pcall('INFO', 'replication')
local server = type(info) == 'string' and string.match(info, 'master_replid:(%w+)') or ''
local reply = {1, tonumber(following[2]) - now, server, now}
for _, ended in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 16)) do
  reply[#reply + 1] = (string.gsub(ended, '^!', ''))
end
return reply
