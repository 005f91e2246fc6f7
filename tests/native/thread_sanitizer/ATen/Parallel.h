// Stands in for torch's header of this name under ThreadSanitizer, which sees threads start and end but not the
// barriers of an OpenMP runtime that is not instrumented: at::parallel_for as ATen's, over threads of its own.
#pragma once

#define parallel_for openmp_parallel_for
#define get_num_threads openmp_get_num_threads
#include_next <ATen/Parallel.h>
#undef parallel_for
#undef get_num_threads

#include <exception>
#include <thread>
#include <vector>

namespace at {

inline int get_num_threads() { return 4; }

// The same division of the range; one call more than threads only in that the caller waits.
template <typename F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
  if (begin >= end) return;
  const auto run = [&f](int64_t thread, int64_t from, int64_t to) {
    internal::ThreadIdGuard id(static_cast<int>(thread));
    c10::ParallelGuard guard(true);
    f(from, to);
  };
  if (end - begin <= grain || end - begin == 1 || in_parallel_region()) return run(0, begin, end);
  int64_t threads = get_num_threads();
  if (grain > 0) threads = std::min(threads, divup(end - begin, grain));
  const int64_t share = divup(end - begin, threads);
  std::vector<std::exception_ptr> errors(threads);
  std::vector<std::thread> running;
  for (int64_t k = 0; k < threads && begin + k * share < end; k++)
    running.emplace_back([&, k] {
      try {
        run(k, begin + k * share, std::min(end, begin + (k + 1) * share));
      } catch (...) {
        errors[k] = std::current_exception();
      }
    });
  for (auto& thread : running) thread.join();
  for (const auto& error : errors)
    if (error) std::rethrow_exception(error);
}

}  // namespace at
