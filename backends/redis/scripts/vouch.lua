-- What the option new_server says: no lease and no token from before are out. So a server without
-- a marker grants at once, and one that recovers ends that. Invariant: what is older is left alone:
-- the marker of a server that has kept its data also tells which tokens a loss concerned. What is no
-- marker is left alone, too; obtain.lua tells of it.
--
-- KEYS: 1 the marker, see obtain_free.lua
-- Reply: 1
local marker = redis.pcall('GET', KEYS[1])
local ready = marker
if type(marker) == 'string' then
  ready = tonumber(marker)
  if #marker == 32 then ready = struct.unpack('<d', marker, 17) end
end
-- As in obtain.lua.
if ready == false or (type(ready) == 'number' and ready + 20000000 > now) then
  redis.call('SET', KEYS[1], '1')  -- Any time long past will do.
end
return 1
