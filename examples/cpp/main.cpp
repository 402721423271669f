// Masked layers without Python: loads the library of an installed maskfuse, calls an op of it through torch's
// dispatcher, and compares with the plain product. With a model package, made in Python, runs that too.
//
//   masked_linear LIBRARY [MODEL.pt2 ROWS COLUMNS]
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/InferenceMode.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <optional>
#include <stdexcept>
#include <string>

namespace {

using at::Tensor;

// Registers the ops, and keeps them for as long as the process lives.
void load(const char* path) {
  if (dlopen(path, RTLD_NOW | RTLD_GLOBAL) == nullptr)
    throw std::runtime_error(std::string("cannot load the library: ") + dlerror());
}

template <class Signature>
c10::TypedOperatorHandle<Signature> find(const char* name, const char* library) {
  const auto op = c10::Dispatcher::singleton().findSchema({name, ""});
  if (!op) throw std::runtime_error(std::string(library) + " has no op " + name + ": expected maskfuse's _C.abi3.so");
  return op->typed<Signature>();
}

// A tenth of the weights of a layer are active; the mask enters as one bit a weight.
double difference_from_plain(const char* library) {
  auto pack = find<Tensor(const Tensor&)>("maskfuse::mask_pack", library);
  auto masked_linear =
      find<Tensor(const Tensor&, const Tensor&, const Tensor&, at::TensorList, const std::optional<Tensor>&)>(
          "maskfuse::masked_linear", library);
  at::manual_seed(0);
  const Tensor input = at::randn({32, 256}), weight = at::randn({512, 256}), bias = at::randn({512});
  const Tensor mask = at::rand({512, 256}) < 0.1;
  const Tensor output = masked_linear.call(input, weight, pack.call(mask), {}, bias);
  const Tensor plain = at::linear(input, at::where(mask, weight, 0), bias);
  std::printf("masked_linear: %ld x %ld, %.1f%% of the weights active\n", (long)output.size(0), (long)output.size(1),
              100 * mask.to(at::kFloat).mean().item<double>());
  return (output - plain).abs().max().item<double>();
}

double sum_of_model(const std::string& package, long rows, long columns) {
  const Tensor input = at::linspace(-1, 1, rows * columns).reshape({rows, columns});
  try {
    torch::inductor::AOTIModelPackageLoader model(package);
    return model.run({input}).at(0).sum().item<double>();
  } catch (const c10::Error& error) {
    throw std::runtime_error("cannot run the model " + package + ": " + error.what_without_backtrace());
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2 && count != 5) {
    std::fprintf(stderr, "usage: %s LIBRARY [MODEL.pt2 ROWS COLUMNS]\n", arguments[0]);
    return 2;
  }
  try {
    const c10::InferenceMode no_gradients;
    load(arguments[1]);
    const double difference = difference_from_plain(arguments[1]);
    std::printf("largest difference from at::linear on the masked weight: %.3g\n", difference);
    if (!(difference < 1e-4)) return 1;
    if (count == 5)
      std::printf("sum of the model's output: %.6f\n",
                  sum_of_model(arguments[2], std::atol(arguments[3]), std::atol(arguments[4])));
  } catch (const c10::Error& error) {
    std::fprintf(stderr, "masked_linear: %s\n", error.what_without_backtrace());
    return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "masked_linear: %s\n", error.what());
    return 1;
  }
}
