/* The lock record and the atomic steps on it.
 *
 * Included by safety.pml and liveness.pml. Each inline below is one atomic step on one record:
 * one critical section, one script or one compare-and-swap of a real backend. Time is relative:
 * `h_left` and the others count ticks of the server's clock down to a deadline, and a holder or
 * successor whose count reaches 0 is dropped at that very tick.
 *
 * Who acts: three actors, each with the acquisition that it uses now (`LIVE(i)`) and all those
 * that it has used before, folded into one (`DEAD(i)`). Every message of an old acquisition may
 * arrive at any time, so one name for all of them allows at least what many names would, and the
 * number of attempts needs no bound.
 *
 * MUT_... switches break one rule each; the tests expect the model checker to notice.
 */

#define ACTORS 3
#ifndef LEASE
#define LEASE 3                /* the longest lease, also max_lease; ticks */
#endif
#ifndef RESERVATION
#define RESERVATION 2          /* lease of a reservation; 1 would never outlive a tick */
#endif
#ifndef GRACE
#define GRACE 1                /* ticks before a forced hand-over */
#endif
#ifndef MARGIN
#define MARGIN 1               /* the client stops this long before the lease ends */
#endif

/* Priorities, 1 the lowest. */
#if defined(PRIO_EQUAL_LOW)
#define PRIO(i) ((i) == 2 -> 2 : 1)
#elif defined(PRIO_EQUAL_HIGH)
#define PRIO(i) ((i) == 0 -> 1 : 2)
#elif defined(PRIO_EQUAL)
#define PRIO(i) 1
#else
#define PRIO(i) ((i) + 1)
#endif
#define NEVER 0                /* reserve_below: preempt nobody */
#define ANY 9                  /* reserve_below: preempt any lower priority */

/* Owners: each actor is one, except that SHARED_OWNER makes actors 1 and 2 two handles of one owner. */
#ifdef SHARED_OWNER
#define OWNER(i) ((i) == 2 -> 1 : (i))
#else
#define OWNER(i) (i)
#endif

/* Acquisition ids. */
#define LIVE(i) (i)
#define DEAD(i) ((i) + ACTORS)
#define ACTOR_OF(x) ((x) % ACTORS)
#define BIT(x) (1 << (x))

/* The record. */
byte h_owner;                  /* 0: no holder; else the owner + 1 */
byte h_ids;                    /* the hold's handles, a set of acquisition ids */
byte h_prio, h_left;
bool h_preemptible;
byte s_id;                     /* 0: no successor; else its acquisition id + 1 */
byte s_left;
#ifdef FORCED
byte s_grace;                  /* ticks to the end of the grace; NO_END without forced hand-over */
#define NO_END 99
#endif
#ifdef TOKENS
byte fence, h_token;
byte grants;                   /* history: how many grants there were; numbers them in their true order */
byte h_grant;                  /* history: the number of this hold's grant */
byte top_token;                /* history: the largest token ever given */
#endif
#ifdef RECOVERY
#define LOST 99                /* the marker key is missing and nobody has written the recovery record yet */
byte recovering;               /* 0: normal; LOST; else ticks until max_lease is over since the recovery record */
#ifndef RECOVERY_WAIT
#define RECOVERY_WAIT LEASE
#endif
#endif

/* Scratch variables are no part of the state. The breadth-first search for a shortest counterexample cannot hide any. */
#ifdef SHORTEST
#define SCRATCH
#else
#define SCRATCH hidden
#endif

#ifdef STEPS_BACK
/* The server's clock may be stepped back: everything then ends that many ticks later, unless the next step on the record
 * brings it to its own length. All holds here are granted for LEASE, which is their length. */
#ifndef BACK
#define BACK 9
#endif
#ifndef STEPS
#define STEPS 0                /* how often it is, 0: any number of times */
#endif
byte steps;
#define CAN_STEP_BACK (STEPS == 0 || steps < STEPS)
#ifdef MUT_CUT_TO_THE_CALLERS_LEASE      /* a client whose own longest lease is shorter */
#define CUT_TO (LEASE - 2)
#else
#define CUT_TO LEASE
#endif
#endif

/* What the last step answered. */
#define DENIED 0
#define GRANTED 1              /* Obtained, Reentered; for Extend: Extended */
#define RESERVED 2
SCRATCH byte answer, answer_left;
#ifdef TOKENS
SCRATCH byte answer_token, answer_grant;
#ifndef MAX_GRANTS
#define MAX_GRANTS 4
#endif
#define CAN_GRANT (grants < MAX_GRANTS)
#else
#define CAN_GRANT true
#endif

/* Each property has a flag of its own, so that the checker's report names what broke. Never part of the state. */
SCRATCH byte S1_two_owners_inside, S2_token_not_larger, S2_stale_write_accepted, S2_live_holder_refused;
SCRATCH byte S3_disturbed_without_right, S4_withdrawal_changed_the_hold;
#define CHECK(flag, broken) flag = (broken); assert(!flag)

inline clear_holder() {
  h_owner = 0; h_ids = 0; h_prio = 0; h_left = 0; h_preemptible = 0;
#ifdef TOKENS
  h_token = 0; h_grant = 0;
#endif
}

inline clear_successor() {
  s_id = 0; s_left = 0;
#ifdef FORCED
  s_grace = 0;
#endif
}

/* What every step begins with. */
inline cut() {
#if defined(STEPS_BACK) && !defined(MUT_NOT_CUT)
  h_left = (h_left > CUT_TO -> CUT_TO : h_left);
  s_left = (s_left > RESERVATION -> RESERVATION : s_left);
#ifdef FORCED
  if :: s_grace > GRACE && s_grace != NO_END -> s_grace = GRACE :: else fi;
#endif
#ifdef RECOVERY
  if :: recovering > RECOVERY_WAIT && recovering != LOST -> recovering = RECOVERY_WAIT :: else fi;
#endif
#endif
  skip
}

#ifdef STEPS_BACK
/* Once more before anybody has looked makes no difference. */
inline step_back(ticks) {
  if :: STEPS != 0 -> steps++ :: else fi;
  if :: h_left > 0 && h_left <= LEASE -> h_left = h_left + ticks :: else fi;
#ifdef FORCED
  if :: s_id != 0 && s_grace <= GRACE -> s_grace = s_grace + ticks :: else fi;
#endif
  if :: s_left > 0 && s_left <= RESERVATION -> s_left = s_left + ticks :: else fi;
#ifdef RECOVERY
  if :: recovering != 0 && recovering <= RECOVERY_WAIT -> recovering = recovering + ticks :: else fi;
#endif
  skip
}
#endif

inline grant(x, preemptible) {
#ifdef TOKENS
#ifdef MUT_TOKEN_REUSED
  if :: h_owner == 0 && fence > 0 -> skip :: else -> fence++ fi;
#else
  fence++;
#endif
  grants++;
  CHECK(S2_token_not_larger, fence <= top_token);
  top_token = fence; h_token = fence; h_grant = grants;
#endif
  h_owner = OWNER(ACTOR_OF(x)) + 1; h_ids = BIT(x); h_prio = PRIO(ACTOR_OF(x)); h_preemptible = preemptible;
  h_left = LEASE;
  clear_successor();
  answer = GRANTED; answer_left = h_left;
}

#define MINE_OR_OUTRANKED(x) (s_id == 0 || s_id == (x) + 1 || PRIO(ACTOR_OF(x)) > PRIO(ACTOR_OF(s_id - 1)))

#ifdef MUT_EQUAL_PREEMPTS
#define OUTRANKS_HOLDER(x, below) (PRIO(ACTOR_OF(x)) >= h_prio && (below) > h_prio)
#elif defined(MUT_RESERVE_BELOW_IGNORED)
#define OUTRANKS_HOLDER(x, below) (PRIO(ACTOR_OF(x)) > h_prio)
#else
#define OUTRANKS_HOLDER(x, below) (PRIO(ACTOR_OF(x)) > h_prio && (below) > h_prio)
#endif
#ifdef MUT_PREEMPTIBLE_IGNORED
#define PREEMPTIBLE true
#else
#define PREEMPTIBLE h_preemptible
#endif
/* A hold that was entered again may have risen above its successor, or be preemptible no more. */
#ifdef MUT_REENTRY_KEEPS_THE_RESERVATION
#define COULD_NOT_RESERVE_NOW(x) (PRIO(ACTOR_OF(x)) <= h_prio)
#else
#define COULD_NOT_RESERVE_NOW(x) (PRIO(ACTOR_OF(x)) <= h_prio || !h_preemptible)
#endif
#ifdef FORCED
#define GRACE_OVER(x, grace) ((grace) != 0 && s_id == (x) + 1 && s_grace == 0)
#else
#define GRACE_OVER(x, grace) false
#endif

/* An anonymous owner is equal to none but the same acquisition. */
#ifdef ANONYMOUS
#define SAME_OWNER(x) (h_ids & BIT(x))
#else
#define SAME_OWNER(x) (h_owner == OWNER(ACTOR_OF(x)) + 1)
#endif

/* Obtain. The waiting thief polls with it too. `grace` is in ticks; 0: no forced hand-over. */
inline obtain(x, preemptible, below, grace) {
  answer = DENIED; answer_left = 0;
  cut();
  if
#ifdef RECOVERY
  :: recovering == LOST -> recovering = RECOVERY_WAIT
  :: recovering != 0 && recovering != LOST -> skip
  :: recovering == 0 && SAME_OWNER(x) ->
#else
  :: SAME_OWNER(x) ->
#endif
     /* The same owner holds: one handle more, and the lease that is left. */
     h_ids = h_ids | BIT(x);
     h_prio = (PRIO(ACTOR_OF(x)) > h_prio -> PRIO(ACTOR_OF(x)) : h_prio);
     h_preemptible = h_preemptible && preemptible;
     if
     :: s_id != 0 && COULD_NOT_RESERVE_NOW(s_id - 1) -> clear_successor()
     :: else
     fi;
     answer = GRANTED;
#ifdef MUT_REENTRY_PROMISES_A_NEW_LEASE
     answer_left = LEASE
#else
     answer_left = h_left
#endif
  :: else ->
     if
     :: h_owner == 0 && MINE_OR_OUTRANKED(x) && CAN_GRANT -> grant(x, preemptible)
#ifdef MUT_THIEF_OVERWRITES
     :: h_owner != 0 && PREEMPTIBLE && OUTRANKS_HOLDER(x, below) && CAN_GRANT -> grant(x, preemptible)
#else
     :: h_owner != 0 && PREEMPTIBLE && OUTRANKS_HOLDER(x, below) && MINE_OR_OUTRANKED(x) ->
        CHECK(S3_disturbed_without_right, !(PRIO(ACTOR_OF(x)) > h_prio && (below) > h_prio && h_preemptible));
        if
        :: GRACE_OVER(x, grace) && CAN_GRANT -> grant(x, preemptible)
        :: else ->
#ifdef FORCED
           if :: s_id != x + 1 -> s_grace = NO_END :: else fi;
           if :: s_grace == NO_END && grace != 0 -> s_grace = grace :: else fi;
#endif
           s_id = x + 1; s_left = RESERVATION; answer = RESERVED
        fi
#endif
     :: else
     fi
  fi;
#ifdef TOKENS
  answer_token = h_token; answer_grant = h_grant
#endif
}

/* Release; also the victim's acknowledgement and the thief's withdrawal. */
inline release(x) {
  cut();
  if
#ifdef MUT_RELEASE_BY_ANYBODY
  :: h_owner != 0 -> clear_holder()
#endif
  :: (h_ids & BIT(x)) ->
     h_ids = h_ids & ~BIT(x);
#ifdef MUT_ONE_HANDLE_ENDS_THE_HOLD
     clear_holder()
#else
     if :: h_ids == 0 -> clear_holder() :: else fi
#endif
  :: else
  fi;
  if
  :: s_id == x + 1 ->
     clear_successor();
#ifdef MUT_WITHDRAWAL_DELETES_THE_HOLDER
     clear_holder()
#endif
  :: else
  fi
}

#ifdef MUT_EXTENSION_UNDER_RESERVATION
#define MAY_EXTEND(x) (h_ids & BIT(x))
#else
#define MAY_EXTEND(x) ((h_ids & BIT(x)) && s_id == 0)
#endif

/* Extend by `ticks`; never shortens. */
inline extend(x, ticks) {
  answer = DENIED; answer_left = 0;
  cut();
  if
  :: MAY_EXTEND(x) ->
#ifdef MUT_EXTENSION_SHORTENS
     h_left = ticks;
#else
     h_left = (ticks > h_left -> ticks : h_left);
#endif
     answer = GRANTED; answer_left = ticks
  :: else
  fi
}

#ifdef TOKENS
/* Confirm: raises the fence and the hold's own token. */
inline confirm(x, token) {
  answer = DENIED;
  if
  :: (h_ids & BIT(x)) && h_token <= token ->
     h_token = token; fence = (fence > token -> fence : token);
     top_token = (top_token > token -> top_token : token);
     answer = GRANTED
  :: else
  fi
}
#endif

/* A shared backend that keeps order: when nobody holds, a registered waiter becomes the successor for a short time. */
inline seat_waiter(x) {
  s_id = x + 1; s_left = RESERVATION;
#ifdef FORCED
  s_grace = NO_END;
#endif
}

/* One tick of the server's clock. */
inline record_tick() {
  if :: h_left > 0 -> h_left--; if :: h_left == 0 -> clear_holder() :: else fi :: else fi;
#ifdef FORCED
  if :: s_grace > 0 && s_grace != NO_END -> s_grace-- :: else fi;
#endif
  if :: s_left > 0 -> s_left--; if :: s_left == 0 -> clear_successor() :: else fi :: else fi;
#ifdef RECOVERY
  if :: recovering != 0 && recovering != LOST -> recovering-- :: else fi;
#endif
}
