-- Before all that obtain.lua may need: the commonest case, in which nobody holds, has reserved, or
-- has ever waited since the record was made, and the server has long kept its data. Does exactly what
-- obtain.lua would do; whatever else is the case is left to it.
do
  local v = redis.call('HMGET', KEYS[1], 'f', 'hd', 'sa', 'wd')
  local ready = not v[2] and not v[3] and not v[4] and redis.call('GET', KEYS[3])
  local slack, format = 10000000, string.format
  if ready and tonumber(ready) + 2 * slack + (tonumber(ARGV[13]) or 0) < now then
    local token = math.max((tonumber(v[1]) or 0) + 1,
                           math.min(math.max(tonumber(ARGV[11]), now - slack), now + slack))
    local deadline = now + tonumber(ARGV[7])
    local token_text = format('%.0f', token)
    redis.call('HSET', KEYS[1], 'f', token_text, 'ho', ARGV[4],
               'hh', 'h' .. ARGV[2] .. ':' .. ARGV[3], 'hp', ARGV[5], 'hx', ARGV[6],
               'ht', token_text, 'hd', format('%.0f', deadline))
    local keep = math.max(token, deadline) + slack - now
    -- Small enough for any way to write a number.
    redis.call('PEXPIRE', KEYS[1], math.ceil(keep / 1000) + 1000)
    return {1, token, deadline - now}
  end
end
