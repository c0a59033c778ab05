-- Appends a publication to a topic's history and sends it to the subscribed nodes, in one atomic step.
--
-- KEYS[1] meta      hash: offset, epoch, tag (of the newest publication), size, ttl (of the policy, ttl in ms)
-- KEYS[2] stream    entries "<offset>-0" with b = body, t = tag
-- KEYS[3] once      optional: "<epoch>:<offset>:<tag>" of the publication that used this idempotency key; ":0:" where it
--                   was only sent. It outlives the history: what counts is that it was published
-- ARGV    size, ttl in ms, epoch (for a new life of the stream), tag, body, shortest ttl of the idempotency key in ms,
--         the topic's sharded channel; size 0: keep it by the policy in meta, and where there is none only send it;
--         size -1: only send it; optional: 1 to send it unkept where the server refuses to write, as orders cannot wait
--
-- Result  {nodes, offset, epoch, tag, 1 if new or 0 if the idempotency key was seen}, the offset 0 where that one was
--         only sent; or where it is only sent now the number of nodes
--
-- A life of the stream is meta and stream together: they expire in the same millisecond, and where one of them was
-- evicted the other is dropped and a new epoch begins, as nobody could tell what is missing. One entry more than
-- `size` is kept, so that the position before the oldest shown one can still be verified by its tag.
-- The first write is XADD, which Redis refuses when its memory is full: then nothing was kept and nothing sent. Whether
-- SPUBLISH is allowed is asked before that, as what cannot be sent must not be kept, nor use up its idempotency key:
-- https://redis.io/docs/latest/develop/programmability/lua-api/#redis.acl_check_cmd

-- The channel is no key: while a slot migrates, a script is refused where one of its keys is missing.

local channel = ARGV[7]
local size, ttl = tonumber(ARGV[1]), ARGV[2]
local epoch, tag, body = ARGV[3], ARGV[4], ARGV[5]
local meta = redis.call('HMGET', KEYS[1], 'offset', 'epoch', 'size', 'ttl')

-- What this script did not write counts as not there: a new life begins, and there is no policy.
local function is_whole(text)
  return text and #text <= 15 and string.match(text, '^%d+$')
end
local is_ours = is_whole(meta[1]) and meta[2] and #meta[2] <= 64 and string.match(meta[2], '^[%w_-]+$')
local has_policy = is_whole(meta[3]) and is_whole(meta[4]) and tonumber(meta[3]) > 0 and tonumber(meta[4]) > 0

local seen = KEYS[3] and redis.pcall('GET', KEYS[3])
if type(seen) == 'string' then
  local of_epoch, of_offset, of_tag = string.match(seen, '^([^:]*):(%d+):([^:]*)$')
  if of_epoch and #of_offset <= 15 then
    local nodes = redis.call('PUBSUB', 'SHARDNUMSUB', channel)[2]
    return {nodes, tonumber(of_offset), of_epoch, of_tag, 0}
  end
end

local function unknown(name)
  return redis.error_reply("ERR unknown command '" .. name .. "'")
end

if redis.acl_check_cmd then
  local is_known, is_allowed = pcall(redis.acl_check_cmd, 'SPUBLISH', channel, '')
  if not is_known then
    return unknown('SPUBLISH')
  elseif not is_allowed then
    return redis.pcall('SPUBLISH', channel, '\1' .. body) -- its error says what the user lacks
  end
end

if size < 0 or (size == 0 and not has_policy) then
  if KEYS[3] then -- before it is sent: a server that is out of memory refuses it, and then nothing was sent
    redis.call('SET', KEYS[3], ':0:', 'PX', ARGV[6])
  end
  return redis.call('SPUBLISH', channel, '\1' .. body)
end
if size == 0 then
  size, ttl = tonumber(meta[3]), meta[4]
end

local has_stream = redis.call('EXISTS', KEYS[2]) == 1
local offset = 1
if is_ours and has_stream then
  offset, epoch = tonumber(meta[1]) + 1, meta[2]
elseif has_stream then
  redis.call('UNLINK', KEYS[2])
end

local function append()
  return redis.pcall('XADD', KEYS[2], 'MAXLEN', '=', size + 1, string.format('%d-0', offset), 'b', body, 't', tag)
end

local added = append()
if type(added) == 'table' and added.err and string.find(added.err, 'equal or smaller', 1, true) then
  -- The stream is ahead of meta: they are not of one life.
  redis.call('UNLINK', KEYS[2])
  offset, epoch = 1, ARGV[3]
  added = append()
end
if type(added) == 'table' and added.err then
  -- Its memory is full, it cannot save to its disk, or too few replicas are connected: none of them forbids to send.
  for _, name in ipairs(ARGV[8] and {'OOM', 'MISCONF', 'NOREPLICAS'} or {}) do
    if string.find(added.err, name, 1, true) then
      return redis.call('SPUBLISH', channel, '\1' .. body)
    end
  end
  return string.find(added.err, 'called from script', 1, true) and unknown('XADD') or added
end

local text = string.format('%d', offset)
redis.call('HSET', KEYS[1], 'offset', text, 'epoch', epoch, 'tag', tag, 'size', size, 'ttl', ttl)
redis.call('PEXPIRE', KEYS[1], ttl)
redis.call('PEXPIRE', KEYS[2], ttl)
if KEYS[3] then
  local once_ttl = math.max(tonumber(ttl), tonumber(ARGV[6]))
  redis.call('SET', KEYS[3], epoch .. ':' .. text .. ':' .. tag, 'PX', string.format('%.0f', once_ttl))
end
local nodes = redis.call('SPUBLISH', channel, '\2' .. text .. ':' .. epoch .. ':' .. tag .. '\n' .. body)
return {nodes, offset, epoch, tag, 1}
