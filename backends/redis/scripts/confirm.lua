-- Confirm. Invariant: the hold's token, which is the fence, only grows, and afterwards no token up
-- to the confirmed one is given again.
--
-- ARGV: 2 token
-- Reply: {1 confirmed, token} {2 raise, own token} {3 not held}
if not at then
  reply = {3}
else
  local proposed = tonumber(ARGV[2])
  if fence > proposed then
    reply = {2, fence}
  else
    if fence < proposed then fence, changed = proposed, true end
    reply = {1, fence}
  end
end
