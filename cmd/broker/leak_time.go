package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	_ "time/tzdata" // Belgian time on hosts that have no time zones
)

const timeForms = "now, 14:05, yesterday 14:00, 3h ago, 2026-11-20 14:00 (Brussels time; UTC with UTC at the end), or 2026-11-20T13:00:00Z"

// parseWhen reads a moment of the past as a person says it, in Brussels time
// unless it says otherwise. A time of day without a day is the last one.
func parseWhen(s string, now time.Time) (time.Time, error) {
	now = now.In(brussels())
	t, err := readWhen(strings.ToLower(strings.Join(strings.Fields(s), " ")), now)
	switch {
	case err != nil:
		return time.Time{}, err
	case t.After(now.Add(time.Minute)):
		return time.Time{}, fmt.Errorf("%s lies in the future", spoken(t))
	case t.Year() < 2000:
		return time.Time{}, fmt.Errorf("%s is too long ago", spoken(t))
	}
	return t.UTC().Truncate(time.Second), nil
}

func readWhen(s string, now time.Time) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, strings.ToUpper(s)); err == nil {
		return t, nil
	}
	switch s {
	case "":
		return time.Time{}, notATime()
	case "now":
		return now, nil
	}
	if text, ok := strings.CutSuffix(s, " ago"); ok {
		return ago(text, now)
	}
	zone := now.Location()
	if text, ok := strings.CutSuffix(s, " utc"); ok {
		s, zone = text, time.UTC
		now = now.In(zone)
	}
	day, clock, both := strings.Cut(s, " ")
	if !both && strings.Contains(day, ":") {
		day, clock = "", day
	}
	midnight, err := readDay(day, now)
	if err != nil {
		return time.Time{}, err
	}
	h, m := 0, 0
	if clock != "" {
		at, err := time.Parse("15:04", clock)
		if err != nil {
			return time.Time{}, notATime()
		}
		h, m = at.Hour(), at.Minute()
	}
	at := func(d time.Time) time.Time { return time.Date(d.Year(), d.Month(), d.Day(), h, m, 0, 0, zone) }
	t := at(midnight)
	if day == "" && t.After(now) {
		t = at(midnight.AddDate(0, 0, -1))
	}
	return t, nil
}

func readDay(s string, now time.Time) (time.Time, error) {
	switch s {
	case "", "today":
		return now, nil
	case "yesterday":
		return now.AddDate(0, 0, -1), nil
	}
	t, err := time.ParseInLocation(time.DateOnly, s, now.Location())
	if err != nil {
		return t, notATime()
	}
	return t, nil
}

// ago is "3h", "90m", "2 days" before now.
func ago(s string, now time.Time) (time.Time, error) {
	n := strings.TrimRight(s, "abcdefghijklmnopqrstuvwxyz ")
	count, err := strconv.Atoi(n)
	if err != nil || count < 0 || count > 100_000 {
		return time.Time{}, notATime()
	}
	unit, ok := map[string]time.Duration{"m": time.Minute, "min": time.Minute, "minute": time.Minute, "minutes": time.Minute,
		"h": time.Hour, "hour": time.Hour, "hours": time.Hour, "d": 24 * time.Hour, "day": 24 * time.Hour, "days": 24 * time.Hour}[strings.TrimSpace(s[len(n):])]
	if !ok {
		return time.Time{}, notATime()
	}
	return now.Add(-time.Duration(count) * unit), nil
}

func notATime() error { return errors.New("that is no time I know: write " + timeForms) }

// spoken is a time as people here say it, and as machines' logs have it.
func spoken(t time.Time) string {
	const day, clock = "2 January 2006", "15:04"
	here, utc := t.In(brussels()), t.UTC()
	other := utc.Format(clock)
	if here.Format(day) != utc.Format(day) {
		other = utc.Format(day + ", " + clock)
	}
	return fmt.Sprintf("%s in Brussels (%s UTC)", here.Format(day+", "+clock), other)
}

func brussels() *time.Location {
	zone, err := time.LoadLocation("Europe/Brussels")
	if err != nil { // it is linked in
		return time.UTC
	}
	return zone
}
