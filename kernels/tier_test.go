package kernels

import "testing"

func TestTier(t *testing.T) {
	for tier := PureGo; tier <= AMX; tier++ {
		if got, err := ParseTier(tier.String()); err != nil || got != tier {
			t.Errorf("%v: %v, %v", tier, got, err)
		}
	}
	if _, err := ParseTier("mmx"); err == nil {
		t.Error("mmx accepted")
	}
	defer SetTier(SetTier(AMX))
	if CurrentTier() != BestTier() {
		t.Errorf("tier %v on a machine of %v", CurrentTier(), BestTier())
	}
}
