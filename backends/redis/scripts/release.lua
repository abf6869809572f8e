-- Release. Invariant: removes exactly this acquisition's handle or reservation and nothing else, so
-- repeating it, however late, never harms a later holder.
--
-- Reply: 1 released   2 withdrawn   3 not held
if at then
  handles, changed, reply = sub(handles, 1, at - 1) .. sub(handles, at + HANDLE), true, 1
  if handles == '' then handles, freed = false, 'r' end
elseif successor == acquisition then
  successor, changed, reply = false, true, 2
  if handles then tell_all(handles, 'N', '') else freed = freed or 'r' end
else
  reply = 3
end
