package ggml

import "testing"

func TestName(t *testing.T) {
	for name, want := range map[string]Name{
		"blk.3.attn_q.weight":         {3, "attn_q", "weight"},
		"blk.12.ffn_down_exps.weight": {12, "ffn_down_exps", "weight"},
		"blk.0.nextn.eh_proj.weight":  {0, "nextn.eh_proj", "weight"},
		"blk.0.ssm_a":                 {0, "ssm_a", ""},
		"token_embd.weight":           {-1, "token_embd", "weight"},
		"output":                      {-1, "output", ""},
		"blk.x.attn_q.weight":         {-1, "blk.x.attn_q", "weight"},
		"blk.-1.attn_q.weight":        {-1, "blk.-1.attn_q", "weight"},
	} {
		if got := ParseName(name); got != want {
			t.Errorf("%s is %+v, want %+v", name, got, want)
		}
		if got := ParseName(name).String(); got != name {
			t.Errorf("%s becomes %s", name, got)
		}
	}
	if got := ParseName("blk.3.attn_q.weight").With("bias"); got != "blk.3.attn_q.bias" {
		t.Errorf("the bias is %s", got)
	}
}
