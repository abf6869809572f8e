-- Release. Invariant: removes exactly this acquisition's handle or reservation and nothing else, so
-- repeating it, however late, never harms a later holder.
--
-- Reply: 1 released   2 withdrawn   3 not held
local at = handle_at(acquisition)
if at then
  local rest = string.sub(handles, 1, at - 1) .. string.sub(handles, at + HANDLE)
  if rest == '' then
    end_hold('r')
  else
    handles, holder_changed = rest, true
    -- A server that is out of memory refuses HSET, unless the script has written before: a release
    -- must not fail for that.
    redis.call('HDEL', K, 'hh')
  end
  return finish(1)
end
if successor == acquisition then
  withdraw_reservation()
  return finish(2)
end
return finish(3)
