-- Takes a token from a bucket that all nodes share, by the time of Redis.
--
-- KEYS[1] bucket    "<tokens>:<microseconds of the last refill>"; absent: full
-- ARGV    rate (tokens a second), capacity
--
-- Result  "0" where a token was taken, else the seconds until there will be one; a refusal takes nothing.
--         {that} where the key held no bucket: it counts as full
--
-- The key expires when the bucket is full again, as a full bucket equals a new one.

local rate, capacity = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local tokens, updated = capacity, now

local state = redis.pcall('GET', KEYS[1])
local strange = false
if type(state) == 'string' then
  local kept, at = string.match(state, '^(-?%d[%d.e+-]*):(%d+)$')
  kept, at = tonumber(kept), tonumber(at)
  strange = not (kept and at and kept < 1e15 and at < 1e18)
  if not strange then
    tokens, updated = kept, at
  end
elseif state then
  if not string.find(state.err, 'WRONGTYPE', 1, true) then
    return state
  end
  strange = true
end
-- After a failover to a server whose clock is behind, `updated` lies ahead: nothing is refilled for that time.
local refilled = math.min(capacity, tokens + math.max(0, now - updated) / 1000000 * rate)

local wait = '0'
-- Summing many refills in floats may end this far below a whole token that is there.
if refilled + 1e-9 >= 1 then
  refilled = refilled - 1
else
  wait = string.format('%.17g', (1 - refilled) / rate)
  if updated <= now then
    return wait -- what is kept still says all
  end
end
local full_in = math.min(math.ceil((capacity - refilled) / rate * 1000) + 1, 31536000000)
redis.call('SET', KEYS[1], string.format('%.17g:%.0f', refilled, now), 'PX', string.format('%.0f', full_in))
return strange and {wait} or wait
