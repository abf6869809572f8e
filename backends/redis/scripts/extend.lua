-- Extend. Invariant: never shortens a hold, never revives or creates one, and never lengthens one
-- that somebody has reserved.
--
-- ARGV: 3 lease
-- Reply: {1 extended, left} {2 reserved, left} {3 not held}
if not handle_at(acquisition) then return finish({3}) end
if successor then return finish({2, left(deadline)}) end
local wanted = now + tonumber(ARGV[3])
if wanted > deadline then deadline, holder_changed = wanted, true end
return finish({1, left(deadline)})
