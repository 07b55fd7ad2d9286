package audit

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// An Anchor is what is kept out of reach of those who can rewrite the log:
// that its entry Seq had this Hash.
type Anchor struct {
	Log  string    `json:"log"`  // the log's own name
	Seq  uint64    `json:"seq"`  // of the entry
	Hash string    `json:"hash"` // of the entry
	Time time.Time `json:"time"` // when it was made; read back from the journal: when the journal got it
}

// AnchorMessageID marks the anchors in the journal:
//
//	journalctl -o json MESSAGE_ID=477ab253a71247dc82dfd0a2c999af44 _SYSTEMD_UNIT=credential-broker.service
//
// The unit has to be asked for: anybody may write to the journal, and only the
// fields with an underscore are the journal's own word.
const AnchorMessageID = "477ab253a71247dc82dfd0a2c999af44"

const (
	journalSocket = "/run/systemd/journal/socket"

	fieldLog  = "BROKER_AUDIT_LOG"
	fieldSeq  = "BROKER_AUDIT_SEQ"
	fieldHash = "BROKER_AUDIT_HASH"
)

// A journal is the path of journald's socket. go-systemd's journal.Send has no
// deadline, and would wait for ever for a journal that hangs.
type journal string

// send hands the anchor over in journald's native protocol.
func (j journal) send(ctx context.Context, a Anchor) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unixgram", string(j))
	if err != nil {
		return fmt.Errorf("the journal is out of reach: %w", err)
	}
	defer c.Close()
	if end, ok := ctx.Deadline(); ok {
		if err := c.SetWriteDeadline(end); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(c, "MESSAGE=audit log %s: entry %d has hash %s\nMESSAGE_ID=%s\nPRIORITY=6\nSYSLOG_IDENTIFIER=brokerd\n%s=%s\n%s=%d\n%s=%s\n",
		a.Log, a.Seq, a.Hash, AnchorMessageID, fieldLog, a.Log, fieldSeq, a.Seq, fieldHash, a.Hash)
	if err != nil {
		return fmt.Errorf("the journal takes nothing: %w", err)
	}
	return nil
}

// ParseAnchors reads what journalctl -o json prints. Messages that are no
// anchors are passed over; a line that is no JSON is an error.
func ParseAnchors(r io.Reader) ([]Anchor, error) {
	var anchors []Anchor
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		if strings.TrimSpace(lines.Text()) == "" {
			continue
		}
		var fields map[string]any // a field is a string, an array or null
		if err := json.Unmarshal(lines.Bytes(), &fields); err != nil {
			return nil, fmt.Errorf("line %d of the journal's export is no JSON: call journalctl with -o json", n)
		}
		field := func(name string) string { s, _ := fields[name].(string); return s }
		seq, err := strconv.ParseUint(field(fieldSeq), 10, 64)
		if field("MESSAGE_ID") != AnchorMessageID || err != nil || seq == 0 || len(field(fieldHash)) != hashLen {
			continue
		}
		a := Anchor{Log: text(field(fieldLog), maxText), Seq: seq, Hash: field(fieldHash)}
		if us, err := strconv.ParseInt(field("__REALTIME_TIMESTAMP"), 10, 64); err == nil {
			a.Time = time.UnixMicro(us).UTC()
		}
		anchors = append(anchors, a)
	}
	if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
		return nil, errors.New("the journal's export has a line of more than 1 MiB: ask journalctl for the anchors alone, by MESSAGE_ID")
	}
	return anchors, lines.Err()
}
