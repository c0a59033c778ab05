-- Reads a topic's history. Changes nothing.
--
-- KEYS[1] meta, KEYS[2] stream: as in publish.lua
-- ARGV    mode, count, offset
--         mode "newest": the `count` newest entries, newest first; no more than the policy's size
--         mode "since": up to `count` entries from `offset` on, oldest first
--         count -1: no limit
--
-- Result  {offset, epoch, tag, size, entries}, offset and tag being the newest; nil where no life of the stream is; 0
--         where the keys hold what publish.lua did not write

local function none_of_ours(reply)
  return string.find(reply.err, 'WRONGTYPE', 1, true) and 0 or reply
end

local function whole(text)
  return text and #text <= 15 and string.match(text, '^%d+$')
end

local function name(text)
  return text and #text <= 64 and string.match(text, '^[%w_-]+$')
end

local meta = redis.pcall('HMGET', KEYS[1], 'offset', 'epoch', 'tag', 'size')
if meta.err then
  return none_of_ours(meta)
end
if not meta[1] or redis.call('EXISTS', KEYS[2]) == 0 then
  return false
end
if not (whole(meta[1]) and whole(meta[4]) and name(meta[2]) and name(meta[3])) then
  return 0
end
local size, count = tonumber(meta[4]), tonumber(ARGV[2])
local entries = {}
if ARGV[1] == 'newest' then
  if count < 0 or count > size then
    count = size
  end
  if count > 0 then
    entries = redis.pcall('XREVRANGE', KEYS[2], '+', '-', 'COUNT', count)
  end
elseif count < 0 then
  entries = redis.pcall('XRANGE', KEYS[2], ARGV[3] .. '-0', '+')
else
  entries = redis.pcall('XRANGE', KEYS[2], ARGV[3] .. '-0', '+', 'COUNT', count)
end
if entries.err then
  return none_of_ours(entries)
end
return {tonumber(meta[1]), meta[2], meta[3], size, entries}
