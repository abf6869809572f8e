-- Extend. Invariant: never shortens a hold, never revives or creates one, and never lengthens one
-- that somebody has reserved.
--
-- ARGV: 2 lease
-- Reply: {1 extended, left} {2 reserved, left} {3 not held}
if not at then
  reply = {3}
elseif successor then
  reply = {2, deadline - now}
else
  local lease = tonumber(ARGV[2])
  if now + lease > deadline then
    deadline, changed = now + lease, true
    if lease > length then length = lease end
  end
  reply = {1, deadline - now}
end
