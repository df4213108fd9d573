// Assignments of held candidates, computed in parts as their token blocks arrive: the product "up"
// of a part as soon as its token blocks are there, the neurons once all parts are there (a membrane
// runs over all spiking steps), then the product "down" part by part. The backward pass does the
// same in reverse. Each product is a separate autograd graph, so that its backward pass can run as
// soon as the gradients of its part have arrived.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "model/candidates.h"

namespace laterna::model {

class StagedAssignments {
 public:
  /// `held`: candidates whose parameters are leaves.
  StagedAssignments(const Candidates& held, StepAssignments assignments);

  std::int64_t parts() const { return std::ssize(assignments_.steps); }

  /// The forward pass, in this order: up() for all parts, neurons(), down() for all parts. z
  /// [blocks * M, D] and gate [blocks, N] are those of the part; down() returns its weighted sums,
  /// [blocks, M * D].
  void up(std::int64_t part, const Spikes& z);
  void neurons();
  const Spikes& spikes() const { return spikes_; }  // [V*M, 4D], after neurons()
  at::Tensor down(std::int64_t part, const at::Tensor& gate);

  /// The backward pass, in this order, each call once, as it frees its graph: down_backward() for
  /// all parts, neurons_backward(), up_backward() for all parts. down_backward() takes the gradient
  /// of the part's sums [blocks, M * D] and returns that of its gate [blocks, N]; up_backward()
  /// returns that of its z [blocks * M, D]. Gradients of the candidates' parameters are added to
  /// `parameters`, in the order of Candidates::parameters(); it is empty at first.
  at::Tensor down_backward(std::int64_t part, const at::Tensor& grad,
                           std::vector<at::Tensor>& parameters);
  void neurons_backward(std::vector<at::Tensor>& parameters);
  at::Tensor up_backward(std::int64_t part, std::vector<at::Tensor>& parameters);

 private:
  struct Part {
    Spikes z;               // leaf
    at::Tensor currents;    // of the hidden layer, computed from z: rows of hidden_
    Spikes spikes;          // leaf: rows of spikes_
    at::Tensor gate, sums;  // gate: leaf; sums: computed from spikes and gate
  };

  /// Returns the rows of `all` that belong to a part.
  at::Tensor rows(const at::Tensor& all, std::int64_t part) const;
  at::Tensor backward(at::Tensor& output, const at::Tensor& grad, at::TensorList inputs,
                      std::vector<at::Tensor>& parameters, at::Tensor* second = nullptr);

  Candidates held_;
  StepAssignments assignments_;
  std::vector<std::int64_t> offsets_;  // [parts + 1] row offsets of the parts, in token rows
  std::vector<Part> parts_;
  at::Tensor hidden_;  // [V*M, 4D] currents of the hidden layer; neurons() makes it a leaf
  Spikes spikes_;      // [V*M, 4D] spikes of these currents
  at::Tensor grad_;    // gradient of spikes_, then of hidden_
};

}  // namespace laterna::model
