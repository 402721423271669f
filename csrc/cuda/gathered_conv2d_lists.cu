// A block makes one list; a thread looks at the bits of a block of the depth, and at no more of them than it takes to
// find one that is set.
#include "block_list.h"
#include "gathered_conv2d_blocks.h"
#include "gathered_conv2d_operands.h"

namespace maskfuse::cuda {
namespace {

template <class Blocks>
__global__ void __launch_bounds__(Blocks::kThreads)
    lists_kernel(const Blocks blocks, int64_t depth_blocks, int32_t* __restrict__ lists) {
  const int64_t group = blockIdx.x;
  const auto active = [&](int64_t block) { return blocks.active(group, block); };
  list_blocks<Blocks::kThreads>(depth_blocks, active, lists + group * (1 + depth_blocks));
}

template <class Blocks>
cudaError_t make(const Blocks& blocks, const ListShape& shape, int32_t* lists, cudaStream_t stream) {
  return launch(lists_kernel<Blocks>, dim3((unsigned)shape.groups), Blocks::kThreads,
                Blocks::kThreads / kWarp * sizeof(int), stream, blocks, shape.blocks, lists);
}

}  // namespace

cudaError_t gathered_conv2d_lists(const GatheredConv& g, int32_t* lists, cudaStream_t stream) {
  const ConvShape& s = g.conv.shape;
  const ConvProduct p = conv_product(g.conv);
  const ListShape shape = lists_of(g);
  const ChannelBits bits{g.channels, g.ld};
  const int64_t pixels = s.pixels(), plane = s.out_h * s.out_w;
  if (g.conv.pass == Pass::forward)
    return make(ForwardBlocks{bits, ceil_div(s.in, 32), pixels, plane, (int)ceil_div(s.in, kDepth)}, shape, lists,
                stream);
  return make(WeightGradBlocks{bits, p.n, p.padded, pixels, plane}, shape, lists, stream);
}

}  // namespace maskfuse::cuda
