-- Reads a topic's history. Changes nothing.
--
-- KEYS[1] meta, KEYS[2] stream: as in publish.lua
-- ARGV    mode, count, offset
--         mode "newest": the `count` newest entries, newest first; no more than the policy's size
--         mode "since": up to `count` entries from `offset` on, oldest first
--         count -1: no limit
--
-- Result  {offset, epoch, tag, size, entries}, offset and tag being the newest; nil where no life of the stream is

local meta = redis.call('HMGET', KEYS[1], 'offset', 'epoch', 'tag', 'size')
if not meta[1] or redis.call('EXISTS', KEYS[2]) == 0 then
  return false
end
local size, count = tonumber(meta[4]), tonumber(ARGV[2])
local entries = {}
if ARGV[1] == 'newest' then
  if count < 0 or count > size then
    count = size
  end
  if count > 0 then
    entries = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', count)
  end
elseif count < 0 then
  entries = redis.call('XRANGE', KEYS[2], ARGV[3] .. '-0', '+')
else
  entries = redis.call('XRANGE', KEYS[2], ARGV[3] .. '-0', '+', 'COUNT', count)
end
return {tonumber(meta[1]), meta[2], meta[3], size, entries}
