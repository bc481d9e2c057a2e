// Package calib prepares what a model is calibrated on and watches what that does: it samples token sequences from texts
// and conversations, observes the inputs of linears, and chooses the ranges to clip them to.
package calib
