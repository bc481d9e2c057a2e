// Package encode stores float32 values in the formats whose every value is by itself: float16, bfloat16, and blocks of
// whole numbers with given scales.
package encode
