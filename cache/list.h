/* list.h: doubly linked lists through a member, in the manner of Linux's list_head. */
#ifndef FOLIO_CACHE_LIST_H
#define FOLIO_CACHE_LIST_H

#include <stdbool.h>
#include <stddef.h>

struct list_head {
    struct list_head *prev, *next;
};

#define list_entry(node, type, member) ((type *)(void *)((char *)(node)-offsetof(type, member)))

static inline void list_init(struct list_head *head)
{
    head->prev = head->next = head;
}

static inline bool list_empty(const struct list_head *head)
{
    return head->next == head;
}

static inline void list_add(struct list_head *node, struct list_head *head) /* at the front */
{
    node->next = head->next;
    node->prev = head;
    head->next->prev = node;
    head->next = node;
}

static inline void list_add_tail(struct list_head *node, struct list_head *head)
{
    list_add(node, head->prev);
}

static inline void list_del(struct list_head *node)
{
    node->prev->next = node->next;
    node->next->prev = node->prev;
    list_init(node);
}

static inline void list_move(struct list_head *node, struct list_head *head)
{
    list_del(node);
    list_add(node, head);
}

#endif
