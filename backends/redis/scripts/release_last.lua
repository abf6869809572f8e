-- Before all that release.lua may need: the commonest case, in which the only handle of a live hold
-- leaves, and nobody has reserved or waits. Does exactly what release.lua would do; whatever else
-- is the case is left to it, also that the record is kept for too long now, or that a full server
-- refuses to write this. See record.lua for the fields.
do
  local s = redis.call('HGET', KEYS[1], 's')
  if s and #s == 64 then
    local fence, kept, deadline, length, acquisition = struct.unpack('<ddddc32', s)
    if acquisition == ARGV[1] and deadline > now and kept <= now + 100000000 and
       redis.pcall('HSET', KEYS[1], 's',
                   struct.pack('<ddddc32', fence, kept, 0, length, acquisition)) == 0 then
      return 1
    end
  end
end
