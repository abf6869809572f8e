-- Confirm. Invariant: the hold's token and the fence only grow, and afterwards no token up to the
-- confirmed one is given again.
--
-- ARGV: 3 token
-- Reply: {1 confirmed, token} {2 raise, own token} {3 not held}
if not handle_at(acquisition) then return finish({3}) end
local proposed = tonumber(ARGV[3])
if token > proposed then return finish({2, token}) end
if token < proposed or fence < proposed then
  token, fence, holder_changed = proposed, math.max(fence, proposed), true
end
return finish({1, proposed})
