// Schemas of the ops that compute, once for the library and for the tests' copy of its CUDA implementations.
#pragma once

namespace maskfuse {

template <class Library>
void define_ops(Library& m) {
  m.def("mask_pack(Tensor dense) -> Tensor");
  m.def("mask_unpack(Tensor bits, int columns) -> Tensor");
  m.def("mask_structure(Tensor bits, int columns, int inner) -> Tensor");
  m.def("mask_transpose(Tensor bits, int columns, int taps) -> Tensor");
  m.def("mask_plan(Tensor bits, int columns, int taps) -> Tensor");
  m.def("mask_lists(Tensor bits, int columns, int taps) -> Tensor[]");

  m.def("masked_linear(Tensor input, Tensor weight, Tensor bits, Tensor[] plan, Tensor? bias) -> Tensor");
  // The same for calls that record no gradient: no autograd kernel stands before it, which small layers would feel.
  m.def("masked_linear_unrecorded(Tensor input, Tensor weight, Tensor bits, Tensor[] plan, Tensor? bias) -> Tensor");
  m.def("masked_linear_input_grad(Tensor grad, Tensor weight, Tensor bits, Tensor[] plan) -> Tensor");
  m.def("masked_linear_weight_grad(Tensor grad, Tensor input, Tensor bits, Tensor[] plan) -> Tensor");

  m.def("masked_linear_pack(Tensor weight, Tensor bits, Tensor[] plan) -> Tensor[]");

  m.def("soft_masked_linear(Tensor input, Tensor weight, Tensor mask, Tensor? bias) -> Tensor");
  m.def("soft_masked_linear_input_grad(Tensor grad, Tensor weight, Tensor mask) -> Tensor");
  m.def("soft_masked_linear_weight_grad(Tensor grad, Tensor input, Tensor factor) -> Tensor");

  m.def("gated_linear(Tensor input, Tensor weight, Tensor scores, Tensor? bias) -> Tensor");
  m.def("gated_linear_input_grad(Tensor grad, Tensor weight, Tensor scores) -> Tensor");
  m.def("gated_linear_weight_grad(Tensor grad, Tensor input, Tensor weight, Tensor scores) -> (Tensor, Tensor)");

  // Gather and scatter have one signature, the sizes of the unselected side: each is the other's derivative.
  m.def(
      "channel_gather(Tensor input, Tensor channels, SymInt num_channels, Tensor? batch, SymInt batch_size) -> Tensor");
  m.def(
      "channel_scatter(Tensor input, Tensor channels, SymInt num_channels, Tensor? batch, SymInt batch_size,"
      " bool unique) -> Tensor");
  m.def("channel_select(Tensor input, Tensor mask, SymInt max_channels) -> Tensor");
  m.def("channel_select_input_grad(Tensor grad, Tensor mask, SymInt max_channels) -> Tensor");

  m.def(
      "masked_linear_candidates(str direction, int batch, Tensor bits, int in_features, Tensor[] plan,"
      " ScalarType dtype) -> str");
  m.def("prefer_masked_linear_kernel(str name) -> ()");
  m.def(
      "masked_linear_choice(str direction, int batch, int out_features, int in_features, ScalarType dtype,"
      " bool channels, bool lists, int multiprocessors, int capability) -> str");
  m.def("use_masked_library(str when) -> str");

  m.def(
      "masked_conv2d(Tensor input, Tensor weight, Tensor bits, Tensor[] plan, Tensor? bias, int[] stride,"
      " int[] padding, int[] dilation, int groups) -> Tensor");
  m.def(
      "masked_conv2d_unrecorded(Tensor input, Tensor weight, Tensor bits, Tensor[] plan, Tensor? bias, int[] stride,"
      " int[] padding, int[] dilation, int groups) -> Tensor");
  m.def(
      "masked_conv2d_input_grad(Tensor grad, Tensor weight, Tensor bits, Tensor[] plan, int[] input_size,"
      " int[] stride, int[] padding, int[] dilation, int groups) -> Tensor");
  m.def(
      "masked_conv2d_weight_grad(Tensor grad, Tensor input, Tensor bits, Tensor[] plan, int[] kernel_size,"
      " int[] stride, int[] padding, int[] dilation, int groups) -> Tensor");
  m.def(
      "gathered_conv2d(Tensor input, Tensor weight, Tensor bits, Tensor? bias, int[] stride, int[] padding,"
      " int[] dilation) -> Tensor");
  m.def(
      "gathered_conv2d_input_grad(Tensor grad, Tensor weight, Tensor bits, int[] input_size, int[] stride,"
      " int[] padding, int[] dilation) -> Tensor");
  m.def(
      "gathered_conv2d_weight_grad(Tensor grad, Tensor input, Tensor bits, int[] kernel_size, int[] stride,"
      " int[] padding, int[] dilation) -> Tensor");
  m.def("masked_conv2d_pack(Tensor weight, Tensor bits, Tensor[] plan) -> Tensor[]");
  m.def(
      "masked_conv2d_candidates(str direction, int[] input_size, int[] kernel_size, Tensor bits, Tensor[] plan,"
      " int[] stride, int[] padding, int[] dilation, int groups, ScalarType dtype,"
      " bool channels_last) -> str");
  m.def("prefer_masked_conv2d_kernel(str name) -> ()");
  m.def(
      "masked_conv2d_choice(str direction, int[] input_size, int[] kernel_size, int out_channels, int[] stride,"
      " int[] padding, int[] dilation, int groups, ScalarType dtype, bool lists, int multiprocessors, int capability)"
      " -> str");
}

}  // namespace maskfuse
