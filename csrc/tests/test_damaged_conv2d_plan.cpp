// Convolutions with plans that are not of their mask: of another one of the same shape, or of changed bytes and yet
// sound. Kernels stay inside images, weights and what they work in, each of exactly its size.
#include "images.h"
#include "masked_conv2d_planner.h"

using namespace maskfuse;
using namespace maskfuse::test;

namespace {

void run(const MaskedConv& problem, Isa isa) {
  const ConvSchedule s = schedule(problem, isa, 2);
  const auto shared = buffer(s.shared_bytes), scratch = buffer(s.scratch_bytes);
  prepare(problem, s, shared.get());
  for (int phase = 0; phase < s.phase_count; ++phase)
    for (int64_t task = 0; task < s.phases[phase].grid.tasks(); ++task)
      run_task(problem, s, phase, task, shared.get(), scratch.get());
  plan_fits(problem, s, shared.get());
}

void walk(const std::vector<uint32_t>& bits, const Plan& plan, const Case& c, Pass pass) {
  const ConvShape s = c.shape();
  for (bool channels_last : {false, true})
    for (const char* kernel : {"accumulate", "shifted", "sampled"})
      for (Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512}) {
        if (!isa_available(isa)) continue;
        Pixels x(Dtype::f32, channels_last, c.batch, c.in, c.h, c.w);
        Pixels y(Dtype::f32, channels_last, c.batch, c.out, s.out_h, s.out_w);
        Matrix weight(Dtype::f32, c.out, s.columns()), gradient(Dtype::f32, c.out, s.columns());
        MaskedConv g{};
        g.pass = pass, g.dtype = Dtype::f32, g.shape = s, g.input = x.image(), g.output = y.image();
        g.weight = weight.bytes.data(), g.weight_ld = s.columns();
        g.weight_grad = gradient.bytes.data(), g.weight_grad_ld = s.columns();
        g.bits = bits.data(), g.bits_ld = mask_words(s.columns()), g.plan = &plan;
        prefer_conv_kernel(kernel);
        run(g, isa);
        ++checks;
      }
}

// The bytes of the plan that a pass takes of a mask.
std::vector<unsigned char> plan_for(Pass pass, const std::vector<uint32_t>& bits, const ConvShape& s, int64_t& rows,
                                    int64_t& columns) {
  rows = s.out, columns = s.columns();
  if (pass != Pass::input_grad) return plan_of(bits, rows, columns, 48 << 10, s.taps());
  std::vector<uint32_t> transposed((size_t)(s.in * mask_words(s.out * s.taps())), 0);
  mask_transpose(bits.data(), s.out, s.columns(), s.taps(), transposed.data(), 0, s.in);
  rows = s.in, columns = s.out * s.taps();
  return plan_of(transposed, rows, columns, 48 << 10, s.taps());
}

void one_case(const Case& c, Pass pass) {
  const ConvShape s = c.shape();
  int64_t rows, columns;
  for (double density : {0.1, 0.5}) {
    const std::vector<uint32_t> bits = random_bits(c.out, s.columns(), density);
    Plan plan;
    for (double other : {0.0, 0.05, 0.5, 1.0}) {
      const std::vector<uint32_t> others = random_bits(c.out, s.columns(), other);
      const std::vector<unsigned char> bytes = plan_for(pass, others, s, rows, columns);
      CHECK(plan_open(bytes.data(), (int64_t)bytes.size(), rows, columns, &plan), "the plan does not open");
      walk(bits, plan, c, pass);
    }
    const std::vector<unsigned char> whole = plan_for(pass, bits, s, rows, columns);
    for (int i = 0; i < 60; ++i) {
      std::vector<unsigned char> bytes = whole;
      bytes[(size_t)random_int(0, (int64_t)bytes.size() - 1)] ^= (unsigned char)random_int(1, 255);
      if (!plan_open(bytes.data(), (int64_t)bytes.size(), rows, columns, &plan) || !plan_is_sound(plan)) continue;
      walk(bits, plan, c, pass);
    }
  }
}

}  // namespace

int main() {
  const Case cases[] = {
      {2, 9, 20, 9, 14, 3, 3, 1, 1, 1, 1, 1, 1},
      {1, 40, 33, 5, 7, 1, 1, 1, 1, 0, 0, 1, 1},
      {2, 8, 17, 11, 10, 3, 2, 2, 1, 1, 0, 1, 2},
  };
  for (Pass pass : {Pass::forward, Pass::input_grad, Pass::weight_grad})
    for (const Case& c : cases) one_case(c, pass);
  return report("damaged_conv2d_plan");
}
