// Package model runs language models one layer at a time.
//
//   - A Model is a Source and a Spec, which package arch makes from the source's metadata.
//   - A Layer is a list of Stages. Layer.Run is the only way through it: evaluation, calibration, transforms, profiles,
//     sensitivities and benchmarks all visit.
//   - A Site is linears that share an input: q, k and v; gate and up; those of one expert. A Stage has one Site, or one
//     for each expert.
//   - A State is what a batch of tokens carries through a layer: the residual stream X and the input of the next Site.
//   - A Branch is what a residual connection goes around: attention, an MLP, a mixture of experts. Residual and
//     Parallel make Stages of Branches, norms and scales.
//   - A Loader names a layer's tensors with their shapes, once to check a source's directory and once to fetch them.
//
// A new mixer is a file of its own with a type that has a method Branch; a new family is a file of package arch.
package model
