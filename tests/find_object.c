#define _GNU_SOURCE
#include <link.h>
#include <stddef.h>
#include <stdint.h>

struct dl_find_object {
    unsigned long long flags;
    void *map_start, *map_end, *link_map, *eh_frame;
    unsigned long long reserved[7];
};

struct question {
    uintptr_t address;
    struct dl_find_object *answer;
};

static int look(struct dl_phdr_info *module, size_t size, void *data) {
    struct question *question = data;
    int is_here = 0;
    void *eh_frame = NULL;
    for (int number = 0; number < module->dlpi_phnum; number++) {
        const ElfW(Phdr) *header = &module->dlpi_phdr[number];
        uintptr_t start = module->dlpi_addr + header->p_vaddr;
        if (header->p_type == PT_LOAD && question->address - start < header->p_memsz) {
            is_here = 1;
            question->answer->map_start = (void *)start;
            question->answer->map_end = (void *)(start + header->p_memsz);
        }
        if (header->p_type == PT_GNU_EH_FRAME) eh_frame = (void *)start;
    }
    question->answer->eh_frame = eh_frame;
    return is_here && eh_frame;
}

int _dl_find_object(void *address, struct dl_find_object *answer) {
    struct question question = {(uintptr_t)address, answer};
    return dl_iterate_phdr(look, &question) ? 0 : -1;
}
