// Plans and packed weights of which bytes were changed: refused, or of lists that lead nowhere but into the matrix, as
// every kernel that walks them shows in buffers of exactly their size.
#include <limits>

#include "masked_linear.h"
#include "masked_linear_packed.h"
#include "operands.h"

using namespace maskfuse;
using namespace maskfuse::test;

namespace {

void run(const MaskedGemm& problem, Isa isa) {
  const Schedule s = schedule(problem, isa, 2);
  const auto shared = buffer(s.shared_bytes), scratch = buffer(s.scratch_bytes);
  const int64_t tasks[] = {s.first.tasks(), s.grid.tasks()};
  for (int phase = 0; phase < 2; ++phase)
    for (int64_t task = 0; task < tasks[phase]; ++task) run_task(problem, s, phase, task, shared.get(), scratch.get());
}

void walk(const std::vector<uint32_t>& bits, const Plan& plan, int64_t rows, int64_t columns, int64_t batch) {
  for (Pass pass : {Pass::forward, Pass::weight_grad}) {
    const bool grad = pass == Pass::weight_grad;
    Matrix x(Dtype::f32, batch, columns), y(Dtype::f32, batch, rows), w(Dtype::f32, rows, columns);
    MaskedGemm g{};
    g.pass = pass, g.dtype = Dtype::f32, g.bits = bits.data(), g.bits_ld = mask_words(columns), g.plan = &plan;
    g.m = grad ? rows : batch, g.n = grad ? columns : rows, g.k = grad ? batch : columns;
    g.a = grad ? y.bytes.data() : x.bytes.data(), g.a_ld = grad ? rows : columns;
    g.b = grad ? x.bytes.data() : w.bytes.data(), g.b_ld = columns;
    g.c = grad ? w.bytes.data() : y.bytes.data(), g.c_ld = grad ? columns : rows;
    for (Isa isa : {Isa::avx2, Isa::avx512})
      if (isa_available(isa)) run(g, isa);
  }
}

// Returns whether the plan was taken.
bool taken_as_it_is(const std::vector<uint32_t>& bits, const std::vector<unsigned char>& bytes, int64_t rows,
                    int64_t columns) {
  Plan plan;
  if (!plan_open(bytes.data(), (int64_t)bytes.size(), rows, columns, &plan) || !plan_is_sound(plan)) return false;
  for (int64_t batch : {12, 80}) walk(bits, plan, rows, columns, batch);
  return true;
}

// Numbers of the header and of the tiles a little, and much, other than they are.
template <class Number>
void other_numbers(const std::vector<uint32_t>& bits, std::vector<unsigned char> bytes, int64_t rows, int64_t columns,
                   int64_t begin, int64_t end) {
  for (int64_t at = begin; at < end; at += (int64_t)sizeof(Number)) {
    Number value;
    std::memcpy(&value, bytes.data() + at, sizeof(Number));
    for (Number other : {Number(0), Number(value / 2), Number(value - 1), Number(value + 1), Number(2 * value + 1)}) {
      std::memcpy(bytes.data() + at, &other, sizeof(Number));
      taken_as_it_is(bits, bytes, rows, columns);
    }
    std::memcpy(bytes.data() + at, &value, sizeof(Number));
  }
}

bool damaged(const std::vector<uint32_t>& bits, std::vector<unsigned char> bytes, int64_t rows, int64_t columns,
             bool header) {
  const int changes = (int)random_int(1, 3);
  for (int i = 0; i < changes; ++i) {
    const int64_t end = header ? sizeof(PlanHeader) : (int64_t)bytes.size();
    bytes[(size_t)random_int(0, end - 1)] ^= (unsigned char)random_int(1, 255);
  }
  return taken_as_it_is(bits, bytes, rows, columns);
}

void damaged_plans() {
  int taken = 0, tried = 0;
  for (const auto& [rows, columns] : {std::pair<int64_t, int64_t>{40, 70}, {300, 130}, {33, 300}})
    for (double density : {0.03, 0.3, 0.8}) {
      std::vector<uint32_t> bits = random_bits(rows, columns, density);
      const int64_t words = mask_words(columns);
      if (density == 0.3)  // rows of one pattern
        for (int64_t r = 1; r < rows; ++r) std::copy(bits.begin(), bits.begin() + words, bits.begin() + r * words);
      const std::vector<unsigned char> bytes = plan_of(bits, rows, columns, 8 << 10);
      Plan whole;
      CHECK(plan_open(bytes.data(), (int64_t)bytes.size(), rows, columns, &whole), "the plan does not open");
      CHECK(plan_is_sound(whole), "the plan of %ld x %ld, density %g, is sound", (long)rows, (long)columns, density);
      for (int64_t cut : {(int64_t)1, (int64_t)bytes.size() / 2, (int64_t)bytes.size() - 10})
        CHECK(!plan_open(bytes.data(), (int64_t)bytes.size() - cut, rows, columns, &whole), "%ld bytes less",
              (long)cut);
      other_numbers<int64_t>(bits, bytes, rows, columns, 8, sizeof(PlanHeader));
      const int64_t tiles = (int64_t)sizeof(PlanTile) * std::min<int64_t>(6, whole.panels() * whole.chunks() + 1);
      other_numbers<uint32_t>(bits, bytes, rows, columns, sizeof(PlanHeader), (int64_t)sizeof(PlanHeader) + tiles);
      for (int i = 0; i < 100; ++i, ++tried) taken += damaged(bits, bytes, rows, columns, i % 3 == 0);
    }
  CHECK(taken > 0 && taken < tried / 2, "%d of %d damaged plans taken", taken, tried);
}

void misplaced() {
  const std::vector<uint32_t> bits = random_bits(40, 70, 0.2);
  std::vector<unsigned char> bytes = plan_of(bits, 40, 70, 8 << 10);
  bytes.insert(bytes.begin(), 1, 0);
  Plan plan;
  CHECK(!plan_open(bytes.data() + 1, (int64_t)bytes.size() - 1, 40, 70, &plan), "no address of a header");
}

void packed_weights() {
  const int64_t rows = 30, columns = 75;
  const std::vector<uint32_t> bits = random_bits(rows, columns, 0.2);
  std::vector<int64_t> starts(rows + 1);
  const int64_t active = packed_rows(bits.data(), rows, columns, starts.data());
  const Matrix w(Dtype::f32, rows, columns);
  std::vector<float> values((size_t)(active + kPackedPad));
  std::vector<uint16_t> at((size_t)active);
  packed_values(bits.data(), columns, w.bytes.data(), w.ld, Dtype::f32, starts.data(), 0, rows, values.data(),
                at.data());
  const auto sound = [&] {
    return packed_is_sound(bits.data(), rows, columns, {values.data(), at.data(), starts.data(), nullptr});
  };
  CHECK(sound(), "a packed weight is sound");
  for (int64_t change : {-1, 1, 1 << 20}) {
    for (int64_t& start : starts) {
      start += change;
      CHECK(!sound(), "rows begin where they do");
      start -= change;
    }
    for (uint16_t& column : at) {
      column = (uint16_t)(column + change);
      CHECK(!sound() || change == 1 << 20, "columns are those of the mask");
      column = (uint16_t)(column - change);
    }
  }
}

}  // namespace

int main() {
  damaged_plans();
  misplaced();
  packed_weights();
  return report("damaged_plan");
}
