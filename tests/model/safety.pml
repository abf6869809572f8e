/* Safety of one record: S1, S2, S3 and the first half of S4, for three actors on an arbitrarily
 * bad network.
 *
 * The network keeps every request ever sent and may deliver it at any time, any number of times,
 * or never. Of its own requests a client tracks the newest one and takes only that one's answer.
 * An actor may give up, leave or crash at any moment and starts again with a fresh acquisition; a
 * crash is a departure whose release is never delivered.
 *
 * Switches: TOKENS (numbers the grants, for S2), CONFIRM, FORCED (thieves that ask for forced
 * hand-over), PAUSES (an actor may stay inside after its lease), OPTIONS (requests with every
 * `preemptible` and `reserve_below`), ORDERED (the server seats waiters), RECOVERY (the server
 * may lose its data), STEPS_BACK (its clock may be stepped back), INVARIANTS, and the MUT_... ones.
 */
#include "record.pml"

#define IDLE 0
#define WAITING 1
#define INSIDE 2
byte state[ACTORS];
/* The tracked request. While it is ASKED `ticks` is its age, once ANSWERED and while INSIDE the
 * ticks until `valid until`, counted from the sending of the very request that was answered. */
#define NOTHING 0
#define ASKED 1
#define ANSWERED 2
byte call[ACTORS], ticks[ACTORS];
byte extend_call[ACTORS], extend_ticks[ACTORS];
#ifdef NOTICES
/* Ticks until the end of the grace, less the margin, as this actor was told it. */
#define NOT_TOLD 99
byte yield_ticks[ACTORS] = NOT_TOLD;
byte notice[ACTORS] = NOT_TOLD;        /* a notice under way: the ticks left of the grace when it was sent */
#endif
#ifdef TOKENS
byte token[ACTORS], grant_number[ACTORS];
byte resource_token, resource_grant;   /* the largest that the protected resource has accepted */
#endif

/* An answer to a request of this age is of no use. */
#define TOO_OLD (LEASE - MARGIN)
#define USABLE(left, age) ((left) > (age) + MARGIN)

#ifdef NOTICES      /* with forced hand-over: was somebody replaced before it had to be gone by what it was told? */
#define EXCLUSION yielding_replaced_too_early
SCRATCH byte yielding_replaced_too_early;
#define CONFLICT(i, j) (state[j] == INSIDE && OWNER(i) != OWNER(j) && \
                        yield_ticks[j] != NOT_TOLD && !(h_ids & BIT(LIVE(j))))
#else
#define EXCLUSION S1_two_owners_inside
#define CONFLICT(i, j) (state[j] == INSIDE && OWNER(i) != OWNER(j))
#endif

inline forget_call(i) {
  call[i] = NOTHING; ticks[i] = 0;
#ifdef TOKENS
  token[i] = 0; grant_number[i] = 0;
#endif
}

inline enter(i) {
  state[i] = INSIDE; call[i] = NOTHING;
#ifndef NO_EXCLUSION
  CHECK(EXCLUSION, CONFLICT(i, 0) || CONFLICT(i, 1) || CONFLICT(i, 2));
#endif
}

/* Leave, give up or crash. The acquisition is dead from here on; its release may arrive from here on. */
inline quit(i) {
  state[i] = IDLE; extend_call[i] = NOTHING; extend_ticks[i] = 0;
  forget_call(i);
#ifdef NOTICES
  yield_ticks[i] = NOT_TOLD; notice[i] = NOT_TOLD;
#endif
#ifndef MUT_ID_REUSED
  if :: (h_ids & BIT(LIVE(i))) -> h_ids = (h_ids & ~BIT(LIVE(i))) | BIT(DEAD(i)) :: else fi;
  if :: s_id == LIVE(i) + 1 -> s_id = DEAD(i) + 1 :: else fi
#endif
}

/* What the client will make of the answer to its tracked Obtain. */
inline take_answer(i) {
  if
  :: answer == GRANTED && USABLE(answer_left, ticks[i]) ->
     call[i] = ANSWERED; ticks[i] = answer_left - ticks[i] - MARGIN;
#ifdef TOKENS
     token[i] = answer_token; grant_number[i] = answer_grant
#endif
  :: else -> forget_call(i)
  fi
}

/* Every Obtain that may be sent, as alternatives of a `do` loop: the tracked one, and (below) the late ones. */
#define SERVE(i, preemptible, below, grace) \
  :: d_step { call[i] == ASKED -> printf("server: Obtain of actor %d\n", i); \
       obtain(LIVE(i), preemptible, below, grace); take_answer(i) }
#define SERVE_LATE(x, may_exist, preemptible, below, grace) \
  :: d_step { may_exist -> printf("server: late Obtain of acquisition %d\n", x); \
       obtain(x, preemptible, below, grace) }

active [ACTORS] proctype Actor() {
  do
  :: d_step { state[_pid] != INSIDE && call[_pid] == NOTHING ->
       printf("actor %d: asks\n", _pid);
       state[_pid] = WAITING; call[_pid] = ASKED; ticks[_pid] = 0 }
  SERVE(_pid, 1, ANY, 0)
#ifdef FORCED
  SERVE(_pid, 1, ANY, GRACE)
#ifdef OTHER_GRACE
  SERVE(_pid, 1, ANY, OTHER_GRACE)
#endif
#endif
#ifdef OPTIONS
  SERVE(_pid, 0, ANY, 0)
  SERVE(_pid, 1, NEVER, 0)
  SERVE(_pid, 1, 2, 0)
#endif
  :: d_step { call[_pid] != NOTHING -> printf("actor %d: answer lost\n", _pid); forget_call(_pid) }
  :: d_step { call[_pid] == ANSWERED -> printf("actor %d: ENTERS\n", _pid); enter(_pid) }
  :: d_step { state[_pid] != IDLE ->
       printf("actor %d: leaves, gives up or crashes\n", _pid); quit(_pid) }
#ifndef NO_EXTENSION
  :: d_step { state[_pid] == INSIDE && extend_call[_pid] == NOTHING ->
       printf("actor %d: asks for an extension\n", _pid);
       extend_call[_pid] = ASKED; extend_ticks[_pid] = 0 }
  :: d_step { extend_call[_pid] == ASKED -> printf("server: Extend of actor %d\n", _pid);
       extend(LIVE(_pid), LEASE);
       if
       :: answer == GRANTED && USABLE(answer_left, extend_ticks[_pid]) &&
          answer_left - extend_ticks[_pid] - MARGIN > ticks[_pid] ->
          extend_call[_pid] = ANSWERED; extend_ticks[_pid] = answer_left - extend_ticks[_pid] - MARGIN
       :: else -> extend_call[_pid] = NOTHING; extend_ticks[_pid] = 0
       fi }
  :: d_step { extend_call[_pid] != NOTHING -> printf("actor %d: extension lost\n", _pid);
       extend_call[_pid] = NOTHING; extend_ticks[_pid] = 0 }
  :: d_step { extend_call[_pid] == ANSWERED -> printf("actor %d: is extended\n", _pid);
       ticks[_pid] = (extend_ticks[_pid] > ticks[_pid] -> extend_ticks[_pid] : ticks[_pid]);
       extend_call[_pid] = NOTHING; extend_ticks[_pid] = 0 }
#endif
#ifdef TOKENS
  /* A write to a resource that refuses smaller tokens. */
  :: d_step { state[_pid] == INSIDE && token[_pid] >= resource_token &&
       (token[_pid] > resource_token || grant_number[_pid] != resource_grant) ->
       printf("actor %d: writes with token %d\n", _pid, token[_pid]);
       CHECK(S2_stale_write_accepted, grant_number[_pid] < resource_grant);
       resource_token = token[_pid]; resource_grant = grant_number[_pid] }
#if !defined(FORCED) && !defined(PAUSES)
  :: d_step { state[_pid] == INSIDE && token[_pid] < resource_token ->
       CHECK(S2_live_holder_refused, true) }
#endif
#endif
#ifdef NOTICES
#define CAN_BE_TOLD(i) ((h_ids & BIT(LIVE(i))) && s_id != 0 && s_grace >= MARGIN && s_grace != NO_END)
#define REMAINS(ticks) ((ticks) > MARGIN -> (ticks) - MARGIN : 0)
  /* A pushed notice. It cannot tell how long it was under way. */
  :: d_step { state[_pid] == INSIDE && notice[_pid] == NOT_TOLD && CAN_BE_TOLD(_pid) ->
       printf("server: sends actor %d a notice, grace %d\n", _pid, s_grace);
       notice[_pid] = s_grace }
  :: d_step { state[_pid] == INSIDE && notice[_pid] != NOT_TOLD ->
       yield_ticks[_pid] = REMAINS(notice[_pid]); notice[_pid] = NOT_TOLD;
       printf("actor %d: hears the notice, stays for %d\n", _pid, yield_ticks[_pid]) }
  :: d_step { state[_pid] == INSIDE && yield_ticks[_pid] != NOT_TOLD && s_id == 0 ->
       printf("actor %d: hears that the reservation is gone\n", _pid);
       yield_ticks[_pid] = NOT_TOLD; notice[_pid] = NOT_TOLD }
#endif
#ifdef CONFIRM
  /* Another server of a quorum gave a larger token, and the client confirms it here; the answer may be lost. */
  :: d_step { call[_pid] == ANSWERED && h_token < MAX_GRANTS ->
       printf("server: Confirm of actor %d\n", _pid);
       confirm(LIVE(_pid), h_token + 1);
       if :: answer == GRANTED -> token[_pid] = h_token :: else fi }
  :: d_step { call[_pid] == ANSWERED && h_token < MAX_GRANTS ->
       printf("server: Confirm of actor %d, answer lost\n", _pid);
       confirm(LIVE(_pid), h_token + 1) }
#endif
#ifdef MUT_ACKNOWLEDGE_FIRST
  :: d_step { state[_pid] == INSIDE ->
       printf("actor %d: acknowledges and stays\n", _pid); release(LIVE(_pid)) }
#endif
#ifdef MUT_ID_REUSED
  :: d_step { printf("server: late Release of actor %d\n", _pid); release(LIVE(_pid)) }
#endif
  od
}

/* Late and repeated messages of one acquisition: ids 0..2 are the live ones, 3..5 the dead ones. */
#define X (_pid - ACTORS)
#define EXISTS (X >= ACTORS || state[X] != IDLE)
active [2 * ACTORS] proctype Network() {
  do
  SERVE_LATE(X, EXISTS, 1, ANY, 0)
#ifdef FORCED
  SERVE_LATE(X, EXISTS, 1, ANY, GRACE)
#endif
#ifdef OPTIONS
  SERVE_LATE(X, EXISTS, 0, ANY, 0)
#endif
  :: d_step { X >= ACTORS && ((h_ids & BIT(X)) || s_id == X + 1) ->
       printf("server: Release of acquisition %d\n", X);
#ifdef CHECK_WITHDRAWAL
       cut(); answer = h_owner; answer_left = h_left;
       if
       :: s_id == X + 1 -> release(X);
          CHECK(S4_withdrawal_changed_the_hold, h_owner != answer || h_left != answer_left)
       :: else -> release(X)
       fi
#else
       release(X)
#endif
     }
#ifdef MUT_RELEASE_BY_ANYBODY
  :: d_step { X >= ACTORS && h_owner != 0 ->
       printf("server: Release of acquisition %d\n", X); release(X) }
#endif
#ifndef NO_EXTENSION
  /* Late and repeated extensions, of the longest and of the shortest length. */
  :: d_step { (h_ids & BIT(X)) && h_left < LEASE ->
       printf("server: late Extend of acquisition %d\n", X); extend(X, LEASE) }
  :: d_step { (h_ids & BIT(X)) && h_left > 1 ->
       printf("server: late short Extend of acquisition %d\n", X); extend(X, 1) }
#endif
#ifdef ORDERED
  :: d_step { EXISTS && h_owner == 0 && s_id == 0 ->
       printf("server: seats acquisition %d\n", X); seat_waiter(X) }
#endif
  od
}

inline actor_tick(i) {
#ifdef NOTICES
  if :: yield_ticks[i] != NOT_TOLD && yield_ticks[i] > 0 -> yield_ticks[i]-- :: else fi;
#ifndef LATE_NOTICES
  notice[i] = NOT_TOLD;       /* one that takes a margin or more never arrives */
#endif
#endif
  if :: state[i] == INSIDE && ticks[i] > 0 -> ticks[i]--
     :: call[i] == ASKED -> ticks[i]++; if :: ticks[i] >= TOO_OLD -> forget_call(i) :: else fi
#ifndef MUT_ANSWER_MATCHED_TO_ANOTHER_REQUEST   /* which makes the answer look younger than it is */
     :: call[i] == ANSWERED -> ticks[i]--; if :: ticks[i] == 0 -> forget_call(i) :: else fi
#endif
     :: else
  fi;
  if :: extend_call[i] == ASKED ->
        extend_ticks[i]++;
        if
        :: extend_ticks[i] >= TOO_OLD -> extend_call[i] = NOTHING; extend_ticks[i] = 0
        :: else
        fi
     :: extend_call[i] == ANSWERED ->
        extend_ticks[i]--;
        if :: extend_ticks[i] == 0 -> extend_call[i] = NOTHING :: else fi
     :: else
  fi
}

/* A2: nobody stays inside past `valid until` for a whole margin, so time stands still until it has left. */
#ifdef PAUSES
#define MUST_LEAVE(i) false
#else
#ifdef NOTICES
#define MUST_LEAVE(i) (state[i] == INSIDE && (ticks[i] == 0 || yield_ticks[i] == 0))
#else
#define MUST_LEAVE(i) (state[i] == INSIDE && ticks[i] == 0)
#endif
#endif

active proctype Clock() {
  do
  :: d_step { !MUST_LEAVE(0) && !MUST_LEAVE(1) && !MUST_LEAVE(2) -> printf("tick\n");
       record_tick(); actor_tick(0); actor_tick(1); actor_tick(2) }
#ifdef RECOVERY
  :: d_step { recovering != LOST -> printf("server: loses its data\n");
       clear_holder(); clear_successor(); recovering = LOST }
#endif
#ifdef MUT_RECORD_LOST
  :: d_step { h_owner != 0 ->
       printf("server: forgets the record\n"); clear_holder(); clear_successor() }
#endif
#ifdef MUT_FENCE_LOST
  :: d_step { fence > 0 ->
       printf("server: forgets everything\n"); clear_holder(); clear_successor(); fence = 0 }
#endif
#ifdef STEPS_BACK
  :: d_step { CAN_STEP_BACK && (h_owner != 0 || s_id != 0) ->
       printf("server: its clock goes back a little\n"); step_back(1) }
  :: d_step { CAN_STEP_BACK && (h_owner != 0 || s_id != 0) ->
       printf("server: its clock goes back\n"); step_back(BACK) }
#endif
#ifdef MUT_SERVER_CLOCK_JUMPS
  :: d_step { h_left > 0 -> printf("server: its clock jumps\n"); record_tick() }
#endif
  od
}

#ifdef INVARIANTS
/* Why S1 holds, checked in every state: whoever is or may go inside is in the record, for longer than it believes. */
SCRATCH byte I1_inside_but_not_in_the_record, I2_answer_promises_too_much, I3_extension_promises_too_much;
SCRATCH byte I4_hold_inconsistent, I5_successor_without_right;
#define IN_RECORD(i) (h_owner == OWNER(i) + 1 && (h_ids & BIT(LIVE(i))))
#define I1(i) (state[i] == INSIDE && !(IN_RECORD(i) && h_left >= ticks[i] + MARGIN))
#define I2(i) (call[i] == ANSWERED && !(IN_RECORD(i) && h_left >= ticks[i] + MARGIN))
#define I3(i) (extend_call[i] == ANSWERED && h_left < extend_ticks[i] + MARGIN)
active proctype Monitor() {
  do
  :: d_step {
       CHECK(I1_inside_but_not_in_the_record, I1(0) || I1(1) || I1(2));
       CHECK(I2_answer_promises_too_much, I2(0) || I2(1) || I2(2));
       CHECK(I3_extension_promises_too_much, I3(0) || I3(1) || I3(2));
       CHECK(I4_hold_inconsistent, (h_owner == 0) != (h_ids == 0) || (h_owner == 0) != (h_left == 0));
       CHECK(I5_successor_without_right, s_id != 0 && h_owner != 0 &&
             (PRIO(ACTOR_OF(s_id - 1)) <= h_prio || !h_preemptible ||
              OWNER(ACTOR_OF(s_id - 1)) + 1 == h_owner)) }
  od
}
#endif
