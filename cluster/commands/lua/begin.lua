-- When a session was first seen, by the time of Redis.
--
-- KEYS[1] session   seconds since the epoch, as text
-- ARGV    ttl in ms, counted from the first time; 0 only to look it up
--
-- Result  {the seconds, the present time in seconds, both as text}; nil where it is only looked up and not remembered.
--         Where something else stood in their place it is overwritten, and a third element 1 says so; where it is only
--         looked up it stays, and the seconds are ''

local time = redis.call('TIME')
local now = string.format('%s.%06d', time[1], tonumber(time[2]))
local began = redis.pcall('GET', KEYS[1])
if type(began) == 'string' and #began <= 22 and (string.match(began, '^%d+%.%d+$') or string.match(began, '^%d+$')) then
  return {began, now}
end
if type(began) == 'table' and not string.find(began.err, 'WRONGTYPE', 1, true) then
  return began
end
if ARGV[1] == '0' then
  return began and {'', now, 1}
end
redis.call('SET', KEYS[1], now, 'PX', ARGV[1])
return began and {now, now, 1} or {now, now}
