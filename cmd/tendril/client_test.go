package main

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestAUserWhoWaitsIsToldForWhatEveryTwoSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		stop := whileWaiting(&out, "waiting for store s:1")
		time.Sleep(5 * time.Second)
		stop()
		time.Sleep(time.Minute)
		if got, want := out.String(), "tendril: still waiting for store s:1 after 2s\ntendril: still waiting for store s:1 after 4s\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}
