// Snapshot: a session on its way into a file, or out of one. A class that has state has one function for both ways,
//
//   void serialize(Snapshot& s) { s.section("WIND"); s.in_range(size_, 0, shape_.frames, "frames of the window"); ... }
//
// so that what is written and what is read cannot differ. Bytes go straight between where they lie and one buffer of fixed
// size: no second copy of a memory is ever made, and a file's numbers never decide how much is allocated.
//
// The file: magic, format version, their CRC32C; then parts of at most 64 KiB, each with its section's tag, its number in
// the file, its length and a CRC32C over all of that. A section is a run of parts with one tag. Nothing of a part is
// handed out before its checksum was compared, parts cannot change places, and a file that was cut has no last section.
// It is read and written from front to back, so a pipe will do.
//
// Reading is suspicious: a checksum says that nothing was damaged, not who wrote it. What is an index, a count or a size is
// read by in_range(), numbers that are compared or summed by finite(), and what must hold between them by require().
// A change of what any class writes is another kFormat.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "backend/ops.h"

namespace mosaic {

static_assert(std::endian::native == std::endian::little, "snapshots are little-endian, as all targets are");

// What a file says, in a line of an error: characters that a terminal would act on are question marks.
std::string printable(std::string text);

class Snapshot {
 public:
  static constexpr uint32_t kFormat = 3;
  static constexpr size_t kPartBytes = 64 << 10;

  virtual ~Snapshot() = default;
  Snapshot(const Snapshot&) = delete;
  Snapshot& operator=(const Snapshot&) = delete;

  bool is_reading() const { return is_reading_; }
  // What follows belongs to the section of this tag; the one before must be whole.
  void section(const char (&tag)[5]);
  void bytes(void* data, size_t n);
  // Bytes that kernels reach and the host perhaps does not; queued work on them must have run.
  void kernel_bytes(Ops& ops, std::byte* data, size_t n);

  template <class T>
  void item(T& x) {
    items(&x, 1);
  }
  // Numbers, or records of numbers without padding between them.
  template <class T>
  void items(T* x, size_t n) {
    static_assert(std::is_trivially_copyable_v<T> && !std::is_pointer_v<T> &&
                  (std::has_unique_object_representations_v<T> || std::is_floating_point_v<T>));
    bytes(x, n * sizeof(T));
  }
  // A number that must lie in [low, high].
  template <class T>
  void in_range(T& x, std::type_identity_t<T> low, std::type_identity_t<T> high, const char* what) {
    item(x);
    if (is_reading_ && !(x >= low && x <= high))
      refuse(std::string(what) + " is " + std::to_string(x) + "; expected " + std::to_string(low) + " to " +
             std::to_string(high));
  }
  void flag(bool& x, const char* what) {
    uint8_t byte = x ? 1 : 0;
    in_range(byte, 0, 1, what);
    x = byte != 0;
  }
  template <class T>
  void all_in_range(T* x, size_t n, std::type_identity_t<T> low, std::type_identity_t<T> high, const char* what) {
    items(x, n);
    for (size_t i = 0; i < n && is_reading_; ++i) require(x[i] >= low && x[i] <= high, what);
  }
  // Floats, doubles or halves, none of them NaN or infinity.
  template <class T>
  void finite(T* x, size_t n, const char* what) {
    items(x, n);
    if (!is_reading_) return;
    bool good = true;
    for (size_t i = 0; i < n; ++i) {
      if constexpr (std::is_same_v<T, half_t>) {
        good &= (x[i] & 0x7c00u) != 0x7c00u;
      } else {
        good &= std::isfinite(x[i]);
      }
    }
    require(good, what);
  }

  // While reading: what must hold of what was read. Throws InvalidInput saying that it does not.
  void require(bool holds, const char* what) const {
    if (!holds && is_reading_) refuse(std::string("this does not hold: ") + what);
  }
  [[noreturn]] void refuse(const std::string& why) const;

 protected:
  explicit Snapshot(bool is_reading) : is_reading_(is_reading), part_(kHeaderBytes + kPartBytes) {}

  static constexpr size_t kHeaderBytes = 16;
  struct Header {
    uint32_t tag, number, bytes, crc;
  };
  static_assert(sizeof(Header) == kHeaderBytes);
  static uint32_t checksum(const Header& header, const std::byte* payload);
  static std::string name_of(uint32_t tag);

  std::byte* payload() { return part_.data() + kHeaderBytes; }
  // The part in hand is through: written, or the next one of the section read.
  virtual void next_part() = 0;
  virtual void begin_section(uint32_t tag) = 0;

  const bool is_reading_;
  std::vector<std::byte> part_;  // header and payload, in one piece
  size_t at_ = 0;                // of the payload, where the next byte goes or comes from
  size_t end_ = 0;               // how far it may
  uint32_t tag_ = 0;
  uint32_t number_ = 0;  // of the next part
};

// Writes to a file or pipe that is the caller's. Throws SpillError where that fails; what was written then is no snapshot.
class SnapshotWriter final : public Snapshot {
 public:
  explicit SnapshotWriter(int fd);
  // The last section; call it once, at the end.
  void finish();

 private:
  void next_part() override;
  void begin_section(uint32_t tag) override;
  void write_all(const void* data, size_t n) const;

  int fd_;
};

// Reads from a file or pipe that is the caller's. Throws InvalidInput for what is no whole snapshot of this format, SpillError
// where the system cannot read it.
class SnapshotReader final : public Snapshot {
 public:
  explicit SnapshotReader(int fd);
  // The last section, and nothing behind it.
  void finish();

 private:
  void next_part() override;
  void begin_section(uint32_t tag) override;
  void load(uint32_t tag);
  // How many of n bytes there were.
  size_t read_some(void* data, size_t n) const;

  int fd_;
};

}  // namespace mosaic
