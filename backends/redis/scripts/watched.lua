-- Watch's reply to a waiter, who may have been woken itself.
if not reply then
  if not handles and (woken == acquisition or successor == acquisition or
                      (successor and sub(wish, 34, 53) > successor_priority)) then
    reply = {4, why}
  else
    local in_the_way = handles and deadline or (successor and successor_deadline) or now
    reply = {5, in_the_way - now, (first or successor == acquisition) and '1' or '0'}
  end
end
