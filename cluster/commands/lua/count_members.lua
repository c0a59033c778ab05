-- Counts the members of one topic.
-- KEYS  the topic's hash node -> count of members
-- Gives {members of all nodes, values that are no count}; a key of another type counts as one such value.
local counts = redis.pcall('HVALS', KEYS[1])
if counts.err then
  return string.find(counts.err, 'WRONGTYPE', 1, true) and {0, 1} or counts
end
local members, strange = 0, 0
for _, count in ipairs(counts) do
  if #count <= 15 and string.match(count, '^%d+$') then
    members = members + tonumber(count)
  else
    strange = strange + 1
  end
end
return {members, strange}
