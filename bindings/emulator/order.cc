#include "order.h"

#include <algorithm>

#include "clocks.h"

namespace emulator {
namespace {

bool is_wide(Scope scope) { return scope != Scope::kBlock; }

// Was what a thread of this block did at `when` ordered before what `me` does now?
bool reaches(const Stamp& when, const Stamp& me, const Clocks& clocks) {
  return when.thread == me.thread || when.epoch < me.epoch || clocks.known(me.thread, when.thread) >= when.clock;
}

// Has the thread that did it met no other since?
bool is_private(const Stamp& when, const Clocks& clocks) {
  return when.epoch == clocks.epoch() && clocks.known(when.thread, when.thread) < when.clock;
}

}  // namespace

bool Past::covers(const Stamp& before) const {
  if (before.epoch != epoch) return before.epoch < epoch;
  const auto found = std::lower_bound(clocks.begin(), clocks.end(), std::make_pair(before.thread, std::uint32_t{0}));
  return found != clocks.end() && found->first == before.thread && found->second >= before.clock;
}

void Past::add(const Past& other) {
  if (other.epoch < epoch) return;
  if (other.epoch > epoch) {
    *this = other;
    return;
  }
  decltype(clocks) joined;
  auto mine = clocks.begin();
  for (const auto& theirs : other.clocks) {
    while (mine != clocks.end() && mine->first < theirs.first) joined.push_back(*mine++);
    if (mine != clocks.end() && mine->first == theirs.first)
      joined.emplace_back(theirs.first, std::max(mine++->second, theirs.second));
    else
      joined.push_back(theirs);
  }
  joined.insert(joined.end(), mine, clocks.end());
  clocks = std::move(joined);
}

bool Seen::admits(const Publication& publication) const {
  return publication.number < length && (publication.block == block || (is_wide(scope) && is_wide(publication.scope)));
}

void AtomicVariable::append(Publication publication) {
  publication.number = all_.size();
  all_.push_back(std::move(publication));
  by_block_[all_.back().block].push_back(&all_.back());
}

const std::vector<const Publication*>* AtomicVariable::of_block(std::uint32_t block) const {
  const auto found = by_block_.find(block);
  return found == by_block_.end() ? nullptr : &found->second;
}

void BlockOrder::begin_block(std::uint32_t block, std::mutex& mutex) {
  block_ = block;
  mutex_ = &mutex;
  fences_.clear();
  for (Past& past : earlier_) past = {};
  seen_.clear();
  acquired_.clear();
}

void BlockOrder::fence(Scope scope, const Stamp& me, const Stamp& after, const Clocks& clocks) {
  std::erase_if(fences_, [&](const Fence& fence) {
    return fence.when.thread == me.thread && is_private(fence.when, clocks) && is_wide(fence.scope) <= is_wide(scope);
  });
  fences_.push_back({scope, after, clocks.past_of(me)});
  if (seen_.empty() && acquired_.empty()) return;
  const std::lock_guard<std::mutex> lock(*mutex_);
  for (const Sight& sight : seen_)
    if (reaches(sight.when, me, clocks)) acquire(sight.seen, scope, after, true, clocks);
  for (std::size_t i = 0, count = acquired_.size(); i < count; ++i)
    if (!acquired_[i].is_fenced && reaches(acquired_[i].when, me, clocks))
      add(acquired_, acquired_[i].seen, after, true, clocks);
}

// Who has acquired a publication has acquired all that its thread had.
void BlockOrder::acquire(Seen seen, Scope scope, const Stamp& when, bool is_fenced, const Clocks& clocks) {
  if (!is_wide(scope)) seen.scope = Scope::kBlock;
  add(acquired_, seen, when, is_fenced, clocks);
  for (std::size_t i = 0; i < seen.length; ++i) {
    const Publication& publication = (*seen.variable)[i];
    if (!seen.admits(publication)) continue;
    for (const Seen& further : publication.acquired) add(acquired_, further, when, is_fenced, clocks);
  }
}

// A thread's older sight is replaced, unless others may have been ordered after it.
void BlockOrder::add(std::vector<Sight>& sights, const Seen& seen, const Stamp& when, bool is_fenced,
                     const Clocks& clocks) {
  for (Sight& sight : sights) {
    if (!sight.is_of(seen) || sight.when.thread != when.thread || sight.is_fenced != is_fenced) continue;
    if (sight.seen.length >= seen.length) return;
    if (!is_private(sight.when, clocks)) continue;
    sight = {seen, when, is_fenced, {}};
    return;
  }
  sights.push_back({seen, when, is_fenced, {}});
}

Past BlockOrder::released(Scope scope, const Stamp& me, const Clocks& clocks) const {
  Past past = earlier_[is_wide(scope)];
  for (const Fence& fence : fences_)
    if ((is_wide(fence.scope) || !is_wide(scope)) && reaches(fence.when, me, clocks)) past.add(fence.past);
  return past;
}

void BlockOrder::publish(AtomicVariable& variable, Scope scope, bool is_release, const Stamp& me,
                         const Clocks& clocks) {
  Past past = is_release ? clocks.past_of(me) : released(scope, me, clocks);
  const Past near = is_release || !is_wide(scope) ? past : released(Scope::kBlock, me, clocks);
  std::vector<Seen> acquired;
  for (const Sight& sight : acquired_)
    if ((sight.is_fenced || is_release) && reaches(sight.when, me, clocks)) acquired.push_back(sight.seen);
  const auto append = [&](const Past& what, Scope whom) {
    if (what.epoch == 0) return;
    const auto* mine = variable.of_block(block_);
    if (mine != nullptr && mine->back()->scope == whom && mine->back()->past == what &&
        mine->back()->acquired == acquired)
      return;
    variable.append({block_, whom, 0, what, acquired});
  };
  if (!(near == past)) append(near, Scope::kBlock);
  append(past, is_wide(scope) ? Scope::kDevice : Scope::kBlock);
}

void BlockOrder::observe(const AtomicVariable& variable, std::size_t length, Scope scope, bool is_acquire,
                         const Stamp& me, const Clocks& clocks) {
  if (length == 0) return;
  const Seen seen{&variable, length, block_, is_wide(scope) ? Scope::kDevice : Scope::kBlock};
  if (is_acquire)
    acquire(seen, scope, me, false, clocks);
  else
    add(seen_, seen, me, false, clocks);
}

// What all threads know needs to be kept once.
void BlockOrder::merge(std::vector<Sight>& sights) {
  std::vector<Sight> merged;
  for (Sight& sight : sights) {
    const auto same = std::find_if(merged.begin(), merged.end(), [&](const Sight& other) {
      return other.is_of(sight.seen) && other.is_fenced == sight.is_fenced;
    });
    if (same == merged.end())
      merged.push_back(std::move(sight));
    else if (same->seen.length < sight.seen.length)
      *same = std::move(sight);
  }
  sights = std::move(merged);
}

void BlockOrder::end_epoch() {
  if (seen_.size() > 1) merge(seen_);
  if (acquired_.size() > 1) merge(acquired_);
  for (const Fence& fence : fences_) {
    earlier_[0].add(fence.past);
    if (is_wide(fence.scope)) earlier_[1].add(fence.past);
  }
  fences_.clear();
}

bool BlockOrder::covers_acquired(std::uint32_t block, const Stamp& before, const Stamp& me, const Clocks& clocks) {
  for (Sight& sight : acquired_) {
    if (!reaches(sight.when, me, clocks)) continue;
    auto found = sight.found.find(block);
    if (found == sight.found.end()) {
      found = sight.found.emplace(block, std::vector<const Past*>()).first;
      const std::lock_guard<std::mutex> lock(*mutex_);
      if (const auto* publications = sight.seen.variable->of_block(block))
        for (const Publication* publication : *publications)
          if (sight.seen.admits(*publication)) found->second.push_back(&publication->past);
    }
    for (const Past* past : found->second)
      if (past->covers(before)) return true;
  }
  return false;
}

}  // namespace emulator
