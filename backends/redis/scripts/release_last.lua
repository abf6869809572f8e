-- Before all that release.lua may need: the commonest case, in which the only handle of a live hold
-- leaves, nobody has reserved, and nobody has ever waited since the record was made. Does exactly
-- what release.lua would do; whatever else is the case is left to it.
do
  local v = redis.call('HMGET', KEYS[1], 'hh', 'hd', 'sa', 'wd', 'f')
  local handles = v[1]
  if handles and #handles == 50 and string.sub(handles, 2, 33) == ARGV[2] and not v[3] and
     not v[4] and tonumber(v[2]) > now then
    redis.call('HDEL', KEYS[1], 'ho', 'hh', 'hp', 'hx', 'ht', 'hd')
    local keep = math.max(tonumber(v[5]) - now, 0) + 10000000
    -- Small enough for any way to write a number.
    redis.call('PEXPIRE', KEYS[1], math.ceil(keep / 1000) + 1000)
    return 1
  end
end
