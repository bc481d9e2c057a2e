//go:build !purego

package kernels

var (
	int8AVX2   = int8Kernels{int8RowAVX2x1, int8RowAVX2x4, int8GroupsAVX2x1, int8GroupsAVX2x4}
	int8AVX512 = int8Kernels{int8RowAVX512x1, int8RowAVX512x4, int8GroupsAVX512x1, int8GroupsAVX512x4}
)

// int8Tier returns the kernels of the tier in use, nil in pure Go.
func int8Tier() *int8Kernels {
	switch t := CurrentTier(); {
	case t >= AVX512:
		return &int8AVX512
	case t == AVX2:
		return &int8AVX2
	}
	return nil
}
