package main

import (
	"strings"
	"testing"
	"time"
)

func TestParseWhen(t *testing.T) {
	now := time.Date(2026, 11, 21, 2, 30, 15, 9, time.UTC) // 03:30 in Brussels
	for text, want := range map[string]string{
		"now":                       "2026-11-21T02:30:15Z",
		" NOW ":                     "2026-11-21T02:30:15Z",
		"03:05":                     "2026-11-21T02:05:00Z",
		"3:05":                      "2026-11-21T02:05:00Z",
		"14:05":                     "2026-11-20T13:05:00Z", // the last one
		"02:05 utc":                 "2026-11-21T02:05:00Z",
		"02:40 UTC":                 "2026-11-20T02:40:00Z",
		"today 01:00":               "2026-11-21T00:00:00Z",
		"yesterday  14:00":          "2026-11-20T13:00:00Z",
		"yesterday":                 "2026-11-19T23:00:00Z",
		"yesterday 14:00 UTC":       "2026-11-20T14:00:00Z",
		"2026-07-01":                "2026-06-30T22:00:00Z", // summer time
		"2026-07-01 14:00":          "2026-07-01T12:00:00Z",
		"2026-07-01 14:00 utc":      "2026-07-01T14:00:00Z",
		"2026-11-20T13:00:00Z":      "2026-11-20T13:00:00Z",
		"2026-11-20t13:00:00+01:00": "2026-11-20T12:00:00Z",
		"2026-11-20T13:00:00.5Z":    "2026-11-20T13:00:00Z",
		"3h ago":                    "2026-11-20T23:30:15Z",
		"90 minutes ago":            "2026-11-21T01:00:15Z",
		"2 days ago":                "2026-11-19T02:30:15Z",
		"":                          "no time",
		"utc":                       "no time",
		"today 14:05":               "in the future",
		"2027-01-01":                "in the future",
		"0202-11-20":                "too long ago",
		"25:00":                     "no time",
		"14":                        "no time",
		"14.05":                     "no time",
		"today 14":                  "no time",
		"20/11/2026":                "no time",
		"2026-02-30":                "no time",
		"soon":                      "no time",
		"-3h ago":                   "no time",
		"ago":                       "no time",
		"3 weeks ago":               "no time",
		"1000000h ago":              "no time",
		"yesterday 14:00 14:00":     "no time",
	} {
		got, err := parseWhen(text, now)
		if err != nil {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q: %v, want %s", text, err, want)
			}
			continue
		}
		if got.Format(time.RFC3339Nano) != want {
			t.Errorf("%q: %s, want %s", text, got.Format(time.RFC3339Nano), want)
		}
	}
}

func TestSpoken(t *testing.T) {
	for text, want := range map[string]string{
		"2026-11-20T13:00:00Z": "20 November 2026, 14:00 in Brussels (13:00 UTC)",
		"2026-07-01T22:30:00Z": "2 July 2026, 00:30 in Brussels (1 July 2026, 22:30 UTC)",
	} {
		at, err := time.Parse(time.RFC3339, text)
		if err != nil {
			t.Fatal(err)
		}
		if got := spoken(at); got != want {
			t.Errorf("%s: %s", text, got)
		}
	}
}

func FuzzParseWhen(f *testing.F) {
	now := time.Date(2026, 11, 21, 2, 30, 15, 9, time.UTC)
	for _, s := range []string{"now", "yesterday 14:00 utc", "3h ago", "2026-11-20T13:00:00Z"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got, err := parseWhen(s, now); err == nil && (got.After(now.Add(time.Minute)) || got.Year() < 1999) {
			t.Errorf("%q: %s", s, got)
		}
	})
}
