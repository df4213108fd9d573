// Assignments of held candidates whose blocks come in parts, forward and backward: a part's product
// up as soon as its blocks are there, the neurons when all parts are (a membrane runs over all
// spiking steps), then part by part the product down, and in the backward pass the same in reverse.
// Each product is an autograd graph of its own, so that its backward can run when its part's
// gradients have come.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "model/candidates.h"

namespace laterna::model {

class StagedAssignments {
 public:
  /// `held`: candidates with leaves for parameters.
  StagedAssignments(const Candidates& held, StepAssignments assignments);

  std::int64_t parts() const { return std::ssize(assignments_.steps); }

  /// In this order: up() of all parts, neurons(), down() of all. z [blocks * M, D] and gate
  /// [blocks, N] of a part; down() returns its weighted sums, [blocks, M * D].
  void up(std::int64_t part, const Spikes& z);
  void neurons();
  const Spikes& spikes() const { return spikes_; }  // [V*M, 4D], after neurons()
  at::Tensor down(std::int64_t part, const at::Tensor& gate);

  /// In this order, each once, freeing its graph: down_backward() of all parts, with the gradient
  /// of its sums [blocks, M * D], returns the gate's [blocks, N]; neurons_backward();
  /// up_backward() of all parts returns z's [blocks * M, D]. Gradients of the parameters are added
  /// to `parameters`, in the order of Candidates::parameters(), undefined at first.
  at::Tensor down_backward(std::int64_t part, const at::Tensor& grad,
                           std::vector<at::Tensor>& parameters);
  void neurons_backward(std::vector<at::Tensor>& parameters);
  at::Tensor up_backward(std::int64_t part, std::vector<at::Tensor>& parameters);

 private:
  struct Part {
    Spikes z;               // leaf
    at::Tensor currents;    // that it gives: rows of hidden_
    Spikes spikes;          // leaf: rows of the neurons' spikes
    at::Tensor gate, sums;  // leaf, and the sums that both give
  };

  /// The rows of a part among those of all.
  at::Tensor rows(const at::Tensor& all, std::int64_t part) const;
  at::Tensor backward(at::Tensor& output, const at::Tensor& grad, at::TensorList inputs,
                      std::vector<at::Tensor>& parameters, at::Tensor* second = nullptr);

  Candidates held_;
  StepAssignments assignments_;
  std::vector<std::int64_t> offsets_;  // [parts + 1] first row, in tokens
  std::vector<Part> parts_;
  at::Tensor hidden_;  // [V*M, 4D]: currents, a leaf
  Spikes spikes_;      // [V*M, 4D], that they give
  at::Tensor grad_;    // of spikes_, then of hidden_
};

}  // namespace laterna::model
