#include "variables.h"

#include <cxxabi.h>
#include <elf.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

#include "text.h"

namespace emulator {
namespace {

std::string full_name(const char* symbol) {
  int status = 0;
  char* demangled = abi::__cxa_demangle(symbol, nullptr, nullptr, &status);
  std::string name = status == 0 && demangled != nullptr ? demangled : symbol;
  std::free(demangled);
  return name;
}

// "tile" of "void kernel<float>(float*)::tile".
std::string last_name(const std::string& full) {
  const std::size_t scope = full.rfind("::");
  return scope == std::string::npos ? full : full.substr(scope + 2);
}

// The tables of an ELF file that name its variables.
class Symbols {
 public:
  explicit Symbols(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    data_.assign(std::istreambuf_iterator<char>(file), {});
    if (data_.size() < sizeof(Elf64_Ehdr) || std::memcmp(data_.data(), ELFMAG, SELFMAG) != 0) return;
    header_ = at<Elf64_Ehdr>(0);
    sections_ = at<Elf64_Shdr>(header_->e_shoff);
    section_names_ = data_.data() + sections_[header_->e_shstrndx].sh_offset;
  }

  template <class Visit>  // visit(symbol, name)
  void for_each_variable(Visit&& visit) const {
    for (unsigned s = 0; header_ != nullptr && s < header_->e_shnum; ++s) {
      if (sections_[s].sh_type != SHT_SYMTAB) continue;
      const char* names = data_.data() + sections_[sections_[s].sh_link].sh_offset;
      bool is_startup_code = false;  // the compiler's own, in front of ours
      for (std::size_t i = 0; i < sections_[s].sh_size / sizeof(Elf64_Sym); ++i) {
        const auto& symbol = at<Elf64_Sym>(sections_[s].sh_offset)[i];
        const char* name = names + symbol.st_name;
        const auto type = ELF64_ST_TYPE(symbol.st_info);
        if (type == STT_FILE) is_startup_code = std::strcmp(name, "crtstuff.c") == 0;
        const bool is_variable = type == STT_OBJECT || type == STT_TLS;
        const bool is_ours = !is_startup_code || ELF64_ST_BIND(symbol.st_info) != STB_LOCAL;
        if (is_variable && is_ours && symbol.st_size != 0 && symbol.st_shndx != SHN_UNDEF &&
            symbol.st_shndx < header_->e_shnum)
          visit(symbol, name);
      }
    }
  }

  const Elf64_Shdr& section(const Elf64_Sym& symbol) const { return sections_[symbol.st_shndx]; }
  std::string section_name(const Elf64_Sym& symbol) const { return section_names_ + section(symbol).sh_name; }

  const Elf64_Phdr* thread_local_segment() const {
    for (unsigned i = 0; header_ != nullptr && i < header_->e_phnum; ++i) {
      const Elf64_Phdr* segment = at<Elf64_Phdr>(header_->e_phoff) + i;
      if (segment->p_type == PT_TLS) return segment;
    }
    return nullptr;
  }

 private:
  template <class T>
  const T* at(std::size_t offset) const {
    return reinterpret_cast<const T*>(data_.data() + offset);
  }
  std::string data_;
  const Elf64_Ehdr* header_ = nullptr;
  const Elf64_Shdr* sections_ = nullptr;
  const char* section_names_ = nullptr;
};

}  // namespace

Variables read_variables(const std::string& path, std::uintptr_t base) {
  const Symbols symbols(path);
  Variables found;
  if (const Elf64_Phdr* segment = symbols.thread_local_segment()) {
    found.shared_bytes = segment->p_memsz;
    found.shared_alignment = std::max<std::size_t>(segment->p_align, 1);
  }
  symbols.for_each_variable([&](const Elf64_Sym& symbol, const char* name) {
    const bool is_shared = ELF64_ST_TYPE(symbol.st_info) == STT_TLS;
    const std::string full = full_name(name);
    const Variable variable{is_shared ? last_name(full) : full, is_shared ? symbol.st_value : base + symbol.st_value,
                            symbol.st_size};
    if (is_shared)
      found.shared.push_back(variable);
    else if (symbols.section_name(symbol) == "emulator_constant")
      found.constant.push_back(variable);
    else if ((symbols.section(symbol).sh_flags & SHF_WRITE) != 0 &&
             symbols.section_name(symbol).rfind(".data.rel.ro", 0) != 0)
      found.device.push_back(variable);
  });
  return found;
}

SharedLayout::SharedLayout(const Variables& variables)
    : declared_bytes_(static_cast<unsigned>(variables.shared_bytes)) {
  if (variables.shared_bytes == 0) return;
  constexpr std::size_t kGap = 64, kGranule = 1024;
  const std::size_t alignment = std::max<std::size_t>(variables.shared_alignment, 128);
  for (const Variable& variable : variables.shared)
    entries_.push_back({variable.name, variable.place, variable.bytes, 0});
  std::sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) { return a.offset < b.offset; });
  std::size_t end = 0;
  for (Entry& entry : entries_) {
    entry.place = static_cast<unsigned>((end + alignment - 1) / alignment * alignment);
    end = entry.place + entry.bytes + kGap;
  }
  bytes_ = static_cast<unsigned>((end + kGranule - 1) / kGranule * kGranule);
}

unsigned SharedLayout::place(std::uint64_t offset) const {
  const auto next = std::upper_bound(entries_.begin(), entries_.end(), offset,
                                     [](std::uint64_t value, const Entry& entry) { return value < entry.offset; });
  if (next == entries_.begin()) return 0;
  const Entry& entry = *std::prev(next);
  return entry.place + static_cast<unsigned>(offset - entry.offset);
}

const SharedLayout::Entry* SharedLayout::before(std::size_t place) const {
  const auto next = std::upper_bound(entries_.begin(), entries_.end(), place,
                                     [](std::size_t value, const Entry& entry) { return value < entry.place; });
  return next == entries_.begin() ? nullptr : &*std::prev(next);
}

std::string SharedLayout::words(std::size_t place) const {
  const Entry* entry = before(place);
  if (entry == nullptr) return "before the first __shared__ variable";
  const std::size_t offset = place - entry->place;
  if (offset < entry->bytes) return format("byte %zu of __shared__ %s", offset, entry->name.c_str());
  const Entry* next = entry == &entries_.back() ? nullptr : entry + 1;
  if (next != nullptr && next->place - place < offset - entry->bytes)
    return format("%zu bytes before the start of __shared__ %s", next->place - place, next->name.c_str());
  return format("%zu bytes past the end of __shared__ %s (%zu bytes)", offset - entry->bytes, entry->name.c_str(),
                entry->bytes);
}

}  // namespace emulator
