-- Marks a subject as revoked. A shorter revocation never shortens a longer one.
--
-- KEYS[1] revoked   present while the subject is revoked
-- ARGV    ttl in ms
--
-- Result  1 where the revocation was made or made longer, else 0

local left = redis.call('PTTL', KEYS[1])
if left == -1 or left >= tonumber(ARGV[1]) then
  return 0
end
redis.call('SET', KEYS[1], '1', 'PX', ARGV[1])
return 1
