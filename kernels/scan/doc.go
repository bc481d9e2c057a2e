// Package scan walks along sequences: causal convolutions of a few taps, and the recurrence of state spaces.
package scan
